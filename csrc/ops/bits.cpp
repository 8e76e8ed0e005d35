// pack, unpack, counts, count_bytes, burst_planes, gate_grad: elementwise ops on spike planes.
#include "../kernels/planes/bits.h"

#include <torch/csrc/stable/library.h>

#include "aten.h"
#include "neuron.h"

namespace tandem::ops {

namespace {

bool is_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

bool is_packable(ScalarType type) {
  return is_float(type) || type == ScalarType::Bool || type == ScalarType::Byte || type == ScalarType::Char ||
         type == ScalarType::Short || type == ScalarType::Int || type == ScalarType::Long;
}

// The bit pattern of the number 1.
uint64_t one_of(ScalarType type) {
  if (type == ScalarType::Float) return 0x3f800000u;
  if (type == ScalarType::Double) return 0x3ff0000000000000ull;
  if (type == ScalarType::Half) return 0x3c00u;
  return type == ScalarType::BFloat16 ? 0x3f80u : 1;
}

Shape with_first(int64_t first, const Tensor& tensor) {
  Shape shape = shape_of(tensor);
  shape[0] = first;
  return shape;
}

Tensor pack(Tensor spikes) {
  TANDEM_CHECK(spikes.dim() >= 2, "spikes must be [T, B, *features], got ", shape_text(shape_of(spikes)));
  TANDEM_CHECK(is_packable(spikes.scalar_type()), "spikes must be bool, integer or floating");
  const int64_t T = spikes.size(0);
  check_steps(T, Timing::kStep);
  const Tensor dense = to_channels_last(spikes, 2);
  Tensor planes = empty_channels_last(with_first((T + 7) / 8, spikes), 2, ScalarType::Byte, spikes);
  const int64_t neurons = spikes.numel() / T;
  if (neurons == 0) return planes;
  TANDEM_RUN(dense, pack, dense.data_ptr(), static_cast<int32_t>(dense.element_size()), is_float(dense.scalar_type()),
             static_cast<int32_t>(T), neurons, pointer<uint8_t>(planes));
  return planes;
}

Tensor unpack(Tensor planes, int64_t T, ScalarType dtype) {
  check_trains(planes, T, Timing::kStep, "planes");
  TANDEM_CHECK(is_packable(dtype), "dtype must be bool, integer or floating");
  Tensor spikes = empty_channels_last(with_first(T, planes), 2, dtype, planes);
  if (spikes.numel() == 0) return spikes;
  const Tensor dense = to_channels_last(planes, 2);
  TANDEM_RUN(planes, unpack, pointer<uint8_t>(dense), static_cast<int32_t>(T), spikes.numel() / T, spikes.data_ptr(),
             static_cast<int32_t>(spikes.element_size()), one_of(dtype));
  return spikes;
}

Tensor gate_grad(Tensor grad, Tensor mask, double threshold) {
  kernel_dtype(grad, "grad");
  TANDEM_CHECK(grad.dim() >= 1, "grad must be [B, *features], got a scalar");
  check_mask(mask, grad);
  TANDEM_CHECK(threshold > 0, "threshold must be positive, got ", threshold);
  const Tensor dense = to_channels_last(grad, 1);
  Tensor out = empty_channels_last(shape_of(grad), 1, grad.scalar_type(), grad);
  const Tensor bits = to_contiguous(mask);
  TANDEM_RUN(grad, gate_grad, dense.data_ptr(), kernel_dtype(dense, "grad"), pointer<uint8_t>(bits), threshold,
             out.numel(), out.data_ptr());
  return out;
}

// counts [B, *features], channels-last.
Tensor count_spikes(const Tensor& planes, ScalarType dtype) {
  TANDEM_CHECK(planes.scalar_type() == ScalarType::Byte && planes.dim() >= 2,
               "planes must be uint8 [P, B, *features], got ", shape_text(shape_of(planes)));
  Shape shape = shape_of(planes);
  const auto P = static_cast<int32_t>(shape[0]);
  shape.erase(shape.begin());
  if (dtype == ScalarType::Double) return torch::stable::to(count_spikes(planes, ScalarType::Float), dtype);
  Tensor out = empty_channels_last(shape, 1, dtype, planes);
  const DType type = kernel_dtype(out, "dtype");
  if (out.numel() == 0) return out;
  const Tensor dense = to_channels_last(planes, 2);
  TANDEM_RUN(planes, counts, pointer<uint8_t>(dense), P, out.numel(), out.data_ptr(), type);
  return out;
}

}  // namespace

Tensor burst_planes(Tensor counts, int64_t T) {
  check_trains(counts, T, Timing::kWindow, "counts");
  const Tensor planes = empty_channels_last(with_first((T + 7) / 8, counts), 2, ScalarType::Byte, counts);
  if (planes.numel() == 0) return planes;
  const Tensor dense = to_channels_last(counts, 2);
  TANDEM_RUN(counts, burst_planes, pointer<uint8_t>(dense), static_cast<int32_t>(T), counts.numel(),
             pointer<uint8_t>(planes));
  return planes;
}

Tensor count_bytes(Tensor planes) {
  TANDEM_CHECK(planes.scalar_type() == ScalarType::Byte && planes.dim() >= 2 && planes.size(0) <= 32,
               "planes must be uint8 [P, B, *features] of at most 32 planes, got ", shape_text(shape_of(planes)));
  const Tensor counts = empty_channels_last(with_first(1, planes), 2, ScalarType::Byte, planes);
  if (counts.numel() == 0) return counts;
  const Tensor dense = to_channels_last(planes, 2);
  TANDEM_RUN(planes, count_bytes, pointer<uint8_t>(dense), static_cast<int32_t>(planes.size(0)), counts.numel(),
             pointer<uint8_t>(counts));
  return counts;
}

TANDEM_IMPLEMENT(m.impl("pack", TORCH_BOX(&pack)); m.impl("unpack", TORCH_BOX(&unpack));
                 m.impl("counts", TORCH_BOX(&count_spikes)); TANDEM_OP("gate_grad", &gate_grad, 0);
                 m.impl("count_bytes", TORCH_BOX(&count_bytes)); m.impl("burst_planes", TORCH_BOX(&burst_planes)))

}  // namespace tandem::ops
