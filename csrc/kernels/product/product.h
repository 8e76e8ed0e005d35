// The algorithms: each loads the inputs of a block of rows, then multiplies them by the weights of one tile of outputs
// after the other.
#pragma once

#include <vector>

#include "../weights/prepared.h"
#include "digits/digits.h"
#include "lists.h"

namespace tandem::cpu {

// The inputs of a block of rows and a group of channels, as the algorithm reads them.
struct BlockInputs {
  std::vector<SpikeLists> lists;  // by K-block
  ExpandedInputs expanded;
};

// A tile, for a block of rows.
struct Place {
  int64_t tile;
  const Block& block;
};

class Product {
 public:
  Product(const Layer& layer, const Prepared& weights) : layer_(layer), prepared_(weights) {}
  virtual ~Product() = default;

  const Layer& layer() const { return layer_; }
  const Prepared& prepared() const { return prepared_; }
  const Tiling& tiling() const { return prepared_.tiling(); }
  Tile tile(const Place& at, int64_t k_block = 0) const {
    return prepared_.tile(layer_, at.tile, k_block, at.block.rows, at.block.first_row);
  }

  // Fires the neurons of the tile.
  void fire(const Place& at, const BlockInputs& inputs) const;
  // The products of counts, [rows, 16 R], exact integers, in memory of this thread.
  const double* windows(const Place& at, const BlockInputs& inputs) const;

  // The most rows of a block.
  virtual int64_t most_rows() const = 0;
  // Loads the inputs of a group for a block of rows.
  virtual void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const = 0;
  // Fetches the weights of tile i, if it pays.
  virtual void fetch(int64_t /*i*/, int64_t /*rows*/) const {}

 protected:
  virtual void fire_steps(const Place& at, const BlockInputs& inputs) const = 0;
  virtual void sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const = 0;
  // Memory of this thread for the sums of each step, [rows, planes, 8, 16 R].
  int32_t* step_sums(const Place& at) const;

  const Layer& layer_;
  const Prepared& prepared_;
};

// Lists of active inputs (lists.h).
class Lists : public Product {
 public:
  // steps: of a pattern.
  Lists(const Layer& layer, const Prepared& weights, int steps);

  int64_t most_rows() const override;
  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const override;
  void fetch(int64_t i, int64_t rows) const override;

 private:
  void fire_steps(const Place& at, const BlockInputs& inputs) const override;
  void sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const override;
  // The sums of each step or, for counts, of their bits.
  const int32_t* sum(const Place& at, const BlockInputs& inputs) const;

  int steps_, bits_;  // of a pattern; of the bytes that are listed, 4 or 8
};

// All inputs times all weights, as products of bytes (digits/digits.h).
class Digits : public Product {
 public:
  using Product::Product;

  int64_t most_rows() const override;
  void load(int64_t group, const Block& block, BlockInputs& inputs, ParallelFor parallel) const override;

 private:
  void fire_steps(const Place& at, const BlockInputs& inputs) const override;
  void sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const override;
};

// Input by input (plain.cpp).
class Plain : public Product {
 public:
  using Product::Product;

  int64_t most_rows() const override { return 64; }  // whose bytes stay in the cache
  void load(int64_t, const Block&, BlockInputs&, ParallelFor) const override {}

 private:
  void fire_steps(const Place& at, const BlockInputs& inputs) const override;
  void sum_counts(const Place& at, const BlockInputs& inputs, double* windows) const override;
};

}  // namespace tandem::cpu
