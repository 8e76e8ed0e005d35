// What a network lends from torch: its products and pools of real numbers.
#pragma once

#include "../kernels/network/executor.h"
#include "tensors.h"

namespace tandem::ops {

// [batch, *features].
Shape batched(int64_t batch, const network::Shape& shape);

class TorchNumbers : public network::Host {
 public:
  // `images` are float32 for every `type`, the type of the arithmetic; `addresses`: by which the executor names them.
  TorchNumbers(const std::vector<Tensor>& images, ScalarType type, const std::vector<const void*>& addresses)
      : images_(images), type_(type), addresses_(addresses) {}

  bool computes_in(DType type) const override { return type != DType::kFloat64; }
  float as_type(float x) const override;
  const float* product(const network::RealLayer& layer, const float* weight, const float* bias,
                       const float* x) override;
  const float* mean(const network::RealLayer& layer, const float* x) override;
  const float* maximum(const network::RealLayer& layer, const float* x) override;
  const float* upsampled(const network::RealLayer& layer, const float* x) override;
  const float* gathered(const network::RealLayer& layer, const int32_t* index, const float* x) override;
  void forget(int64_t results) override;

 private:
  Tensor pooled(const network::RealLayer& layer, const float* x) const;
  // The network's inputs may have any layout; later values are contiguous, or channels last.
  Tensor tensor(const network::RealLayer& layer, const float* x) const;
  Tensor rounded(const Tensor& x) const;
  const float* keep(const network::RealLayer& layer, const Tensor& result);

  const std::vector<Tensor>& images_;
  const ScalarType type_;
  const std::vector<const void*>& addresses_;
  std::vector<Tensor> kept_;
};

}  // namespace tandem::ops
