// The arguments that several ops share, each list once. Schemas, the parameters of boxed functions and the structs that
// take them are made from these lists; Python finds arguments by their names in the schema.
#pragma once

// X(type in the schema, type in C++, name[, default]). Arguments that were added later have defaults, so that programs
// exported before still load.

// The arguments after the planes.
#define TANDEM_PRODUCT_FIELDS(X) \
  X("int", int64_t, T)           \
  X("Tensor", Tensor, weight)

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

#define TANDEM_NEURON_FIELDS(X)                \
  X("Tensor?", OptionalTensor, residual)       \
  X("Tensor?", OptionalTensor, residual_scale) \
  X("Tensor?", OptionalTensor, v_init)         \
  X("int", int64_t, steps)                     \
  X("float", double, threshold)                \
  X("float", double, leak)                     \
  X("str", std::string, gate)

// timing: "step", or "window": then trains are counts, one byte each, instead of planes.
#define TANDEM_LAST_FIELDS(X)                \
  X("bool", bool, return_v)                  \
  X("str", std::string, timing, "=\"step\"") \
  X("Tensor?", OptionalTensor, bad, "=None")

// For ops with neurons that take scale and shift as arguments.
#define TANDEM_SCALED_NEURON_FIELDS(X) \
  TANDEM_AFFINE_FIELDS(X)              \
  TANDEM_NEURON_FIELDS(X)              \
  X("bool", bool, train)               \
  TANDEM_LAST_FIELDS(X)

#define TANDEM_MEMBER(schema, type, name, ...) type name;
// To follow a first argument.
#define TANDEM_PARAMETER(schema, type, name, ...) , type name
#define TANDEM_SCHEMA(schema, type, name, ...) ", " schema " " #name __VA_ARGS__
// For a list in braces.
#define TANDEM_ARGUMENT(schema, type, name, ...) std::move(name),
