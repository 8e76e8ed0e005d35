// The arguments that ops have in common, each list once: their schema, the parameters that torch's boxing sees, and the
// structs that take them come from here; Python finds them by the names of the schema.
#pragma once

// X(type in the schema, type in C++, name)

// Behind the planes. precision: how float32 weights are multiplied on a GPU, as torch.set_float32_matmul_precision
// names it.
#define TANDEM_PRODUCT_FIELDS(X) \
  X("int", int64_t, T)           \
  X("Tensor", Tensor, weight)    \
  X("str", std::string, precision)

#define TANDEM_WINDOW_FIELDS(X) \
  X("int[]", Shape, stride)     \
  X("int[]", Shape, padding)    \
  X("int[]", Shape, dilation)   \
  X("int", int64_t, groups)

#define TANDEM_NORM_FIELDS(X)         \
  X("Tensor?", OptionalTensor, gain)  \
  X("Tensor?", OptionalTensor, gamma) \
  X("Tensor?", OptionalTensor, beta)  \
  X("float", double, eps)

#define TANDEM_AFFINE_FIELDS(X)       \
  X("Tensor?", OptionalTensor, scale) \
  X("Tensor?", OptionalTensor, shift)

// timing: "step", or "window", with which trains are counts: a byte each instead of planes.
#define TANDEM_NEURON_FIELDS(X)                \
  X("Tensor?", OptionalTensor, residual)       \
  X("Tensor?", OptionalTensor, residual_scale) \
  X("Tensor?", OptionalTensor, v_init)         \
  X("int", int64_t, steps)                     \
  X("float", double, threshold)                \
  X("float", double, leak)                     \
  X("str", std::string, gate)                  \
  X("str", std::string, timing)

#define TANDEM_TRAIN_FIELD(X) X("bool", bool, train)
#define TANDEM_RETURN_V_FIELD(X) X("bool", bool, return_v)

// Every op with neurons that it scales and shifts itself.
#define TANDEM_SCALED_NEURON_FIELDS(X) \
  TANDEM_AFFINE_FIELDS(X)              \
  TANDEM_NEURON_FIELDS(X)              \
  TANDEM_TRAIN_FIELD(X)                \
  TANDEM_RETURN_V_FIELD(X)

#define TANDEM_MEMBER(schema, type, name) type name;
// Behind a first argument.
#define TANDEM_PARAMETER(schema, type, name) , type name
#define TANDEM_SCHEMA(schema, type, name) ", " schema " " #name
// In braces.
#define TANDEM_ARGUMENT(schema, type, name) std::move(name),
