// The arguments that several ops share, each list once. Schemas, the parameters of boxed functions and the structs that
// take them are made from these lists; Python finds arguments by their names in the schema.
#pragma once

// X(type in the schema, type in C++, name[, default]).

// The arguments after what the input's train stores.
#define TANDEM_PRODUCT_FIELDS(X) \
  X("int", int64_t, T)           \
  X("Tensor", Tensor, weight)

#define TANDEM_CONV_FIELDS(X) \
  X("int[]", Shape, stride)   \
  X("int[]", Shape, padding)  \
  X("int[]", Shape, dilation) \
  X("int", int64_t, groups)

#define TANDEM_NORM_FIELDS(X)         \
  X("Tensor?", OptionalTensor, gain)  \
  X("Tensor?", OptionalTensor, gamma) \
  X("Tensor?", OptionalTensor, beta)  \
  X("float", double, eps)

// timing: "step" or "window", also of the trains that the layer reads and writes.
#define TANDEM_NEURON_FIELDS(X) \
  X("int", int64_t, steps)      \
  X("float", double, threshold) \
  X("float", double, leak)      \
  X("str", Text, gate)          \
  X("str", Text, timing)

// v_init: the potential before the first step; if absent, 0 or, with timing "window", half of the threshold.
#define TANDEM_TENSOR_FIELDS(X)                         \
  X("Tensor?", OptionalTensor, bad, "=None")            \
  X("Tensor?", OptionalTensor, residual, "=None")       \
  X("Tensor?", OptionalTensor, residual_scale, "=None") \
  X("Tensor?", OptionalTensor, v_init, "=None")

// For ops with neurons that take scale and shift as arguments: scale is multiplied by gain / unit, shift divided by
// unit. Those that most calls leave out are last.
#define TANDEM_SCALED_NEURON_FIELDS(X)         \
  TANDEM_NEURON_FIELDS(X)                      \
  X("bool", bool, train)                       \
  X("bool", bool, return_v)                    \
  X("Tensor?", OptionalTensor, scale, "=None") \
  X("Tensor?", OptionalTensor, shift, "=None") \
  TANDEM_TENSOR_FIELDS(X)                      \
  X("float", double, gain, "=1.0")             \
  X("float", double, unit, "=1.0")

#define TANDEM_MEMBER(schema, type, name, ...) type name{};
// To follow a first argument.
#define TANDEM_PARAMETER(schema, type, name, ...) , type name
#define TANDEM_SCHEMA(schema, type, name, ...) ", " schema " " #name __VA_ARGS__
// For a list in braces.
#define TANDEM_ARGUMENT(schema, type, name, ...) .name = std::move(name),
