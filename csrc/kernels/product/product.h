// The algorithms: each loads the inputs of a block of rows, then multiplies them by the weights of one tile of outputs
// after the other.
#pragma once

#include "../weights/prepared.h"
#include "digits/digits.h"
#include "lists.h"

namespace tandem::cpu {

// The inputs of a block of rows and a group of channels, as the algorithm reads them.
struct BlockInputs {
  const SpikeLists* lists;  // by K-block
  ExpandedInputs expanded;
};

class Product {
 public:
  Product(const Layer& layer, const Prepared& weights) : layer_(layer), prepared_(weights) {}
  virtual ~Product() = default;

  const Layer& layer() const { return layer_; }
  const Prepared& prepared() const { return prepared_; }
  const Tiling& tiling() const { return prepared_.tiling(); }

  // Tile i for the rows of a block.
  Tile tile(int64_t i, const Block& block, Workspace& workspace) const;
  // Fires the neurons of the tile.
  void fire(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const;
  // The products of counts, [rows, 16 R], exact integers, in the workspace.
  const double* windows(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const;
  // Calls use(windows): as floats where they are rounded as they are added, else as doubles.
  template <class Use>
  void rounded_windows(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, const Use& use) const {
    if (const float* sums = rounded(tile, inputs, workspace)) return use(sums);
    use(windows(tile, inputs, workspace));
  }

  // The most rows of a block.
  virtual int64_t most_rows() const = 0;
  // Loads the inputs of a group for a block of rows.
  virtual BlockInputs load(int64_t group, const Block& block, Workspace& workspace, ParallelFor parallel) const = 0;
  // Fetches the weights of tile i, if it pays.
  virtual void fetch(int64_t /*i*/, int64_t /*rows*/) const {}

 protected:
  virtual void fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const = 0;
  virtual void sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, double* windows) const = 0;
  // The products of counts, rounded, or null.
  virtual const float* rounded(const Tile&, const BlockInputs&, Workspace&) const { return nullptr; }
  // Memory for the sums of each step, [rows, sheets, 8, 16 R].
  static int32_t* step_sums(const Tile& tile, Workspace& workspace) {
    return workspace.take<int32_t>(tile.rows * tile.sheets * 8 * tile.width());
  }

  const Layer& layer_;
  const Prepared& prepared_;
};

// Lists of active inputs (lists.h).
class Lists : public Product {
 public:
  // steps: of a pattern.
  Lists(const Layer& layer, const Prepared& weights, int steps);

  static int64_t most_rows(const Layer& layer);
  int64_t most_rows() const override { return most_rows(layer_); }
  BlockInputs load(int64_t group, const Block& block, Workspace& workspace, ParallelFor parallel) const override;
  void fetch(int64_t i, int64_t rows) const override;

 private:
  void fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const override;
  void sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, double* windows) const override;
  // The sums of each step or, for counts, of their bits.
  const int32_t* sum(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const;

  int steps_, bits_;  // of a pattern; of the bytes that are listed, 4 or 8
};

// All inputs times all weights, as products of bytes (digits/digits.h).
class Digits : public Product {
 public:
  using Product::Product;

  static int64_t most_rows(const Layer& layer);
  int64_t most_rows() const override { return most_rows(layer_); }
  BlockInputs load(int64_t group, const Block& block, Workspace& workspace, ParallelFor parallel) const override;

 private:
  void fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const override;
  void sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, double* windows) const override;
  const float* rounded(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const override;
};

// Input by input (plain.cpp).
class Plain : public Product {
 public:
  using Product::Product;

  int64_t most_rows() const override { return 64; }  // whose bytes stay in the cache
  BlockInputs load(int64_t, const Block&, Workspace&, ParallelFor) const override { return {}; }

 private:
  void fire_steps(const Tile& tile, const BlockInputs& inputs, Workspace& workspace) const override;
  void sum_counts(const Tile& tile, const BlockInputs& inputs, Workspace& workspace, double* windows) const override;
};

}  // namespace tandem::cpu
