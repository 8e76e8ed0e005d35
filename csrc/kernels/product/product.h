// The algorithms: each loads the inputs of a block of rows, then multiplies them by the weights of one tile of outputs
// after the other.
#pragma once

#include <vector>

#include "digits/digits.h"
#include "lists.h"
#include "prepared.h"

namespace tandem::cpu {

// The inputs of a block of rows and a group of channels, as the algorithm reads them.
struct BlockInputs {
  std::vector<SpikeLists> lists;  // by K-block
  ExpandedInputs expanded;
};

// Tile `tile` of a group, for a block of rows.
struct Place {
  int64_t group, tile;
  const Block& block;
};

class Product {
 public:
  Product(const Layer& layer, const Prepared& weights) : layer_(layer), prepared_(weights) {}
  virtual ~Product() = default;

  const Layer& layer() const { return layer_; }
  const Prepared& prepared() const { return prepared_; }
  Tile tile(const Place& at, int64_t k_block = 0) const {
    return prepared_.tile(layer_, at.group, at.tile, k_block, at.block.rows, at.block.first_row);
  }

  // The most rows of a block.
  virtual int64_t most_rows() const = 0;
  // Loads the inputs of a group for a block of rows.
  virtual void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const = 0;
  // Writes the sums of each step, [rows, planes, 8, 16 R]; for counts those of their bits.
  virtual void sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const = 0;
  // Writes the sums over the window, [rows, 16 R], exact integers.
  virtual void sum_window(const Place& at, const BlockInputs& inputs, double* windows) const;
  // Fires the neurons of the tile. `open`, null or a byte per neuron, replaces the mask.
  virtual void fire(const Place& at, const BlockInputs& inputs, uint8_t* open) const;
  // Fetches the weights of tile i of a group, if it pays.
  virtual void fetch(int64_t /*group*/, int64_t /*i*/, int64_t /*rows*/) const {}

 protected:
  const Layer& layer_;
  const Prepared& prepared_;
};

// Lists of active inputs (lists.h).
class Lists : public Product {
 public:
  // steps: of a pattern, for int32 weights.
  Lists(const Layer& layer, const Prepared& weights, int steps);
  // The same lists with other weights, the tile that `weights` has.
  Lists(const Lists& of, const Prepared& weights) : Product(of.layer_, weights), steps_(of.steps_), bits_(of.bits_) {}

  int64_t most_rows() const override;
  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const override;
  void sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const override;
  void fire(const Place& at, const BlockInputs& inputs, uint8_t* open) const override;
  void fetch(int64_t group, int64_t i, int64_t rows) const override;

 private:
  int steps_, bits_;  // of a pattern; of the bytes that are listed, 4 or 8
};

// All inputs times all weights, as products of bytes (digits/digits.h).
class Digits : public Product {
 public:
  // `counts`: of the window's spikes, or counts anyway.
  Digits(const Layer& layer, const Prepared& weights, bool counts) : Product(layer, weights), counts_(counts) {}

  int64_t most_rows() const override;
  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const override;
  void sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const override;
  void sum_window(const Place& at, const BlockInputs& inputs, double* windows) const override;

 private:
  bool counts_;
};

// Input by input (plain.h).
class Plain : public Product {
 public:
  using Product::Product;

  int64_t most_rows() const override;
  void load(int64_t, const Block&, BlockInputs&, ParallelFor) const override {}
  void sum(const Place& at, const BlockInputs& inputs, int32_t* sums) const override;
};

}  // namespace tandem::cpu
