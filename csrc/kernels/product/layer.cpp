// run() and window_product(): choose a way and prepare the weights, unless the caller has.
#include "../layer.h"

#include "clock.h"
#include "depthwise.h"
#include "multiply.h"

namespace tandem::cpu {

void run(const Layer& given, ParallelFor parallel) {
  if (given.neuron.neurons == 0) return;
  if (is_depthwise(given.geometry)) return run_depthwise(given, parallel);
  const Layer layer = by_fixed_way(given, given.counted());
  const bool free = layer.way == Way::kFastest || layer.way == Way::kLists;
  const bool few = free && prefers_tile_by_tile(layer.geometry, layer.plane_count());
  if (layer.prepared == nullptr && (few || layer.way == Way::kTileByTile)) return run_tile_by_tile(layer, parallel);
  const TimedWay timed(layer, ways_of(layer), Task::kSpikes);
  const bool digits = takes_digits(timed.way());
  const Prepared prepared(layer, !digits, digits, parallel);
  run_prepared({layer, prepared, timed.way()}, parallel);
  timed.end();
}

void window_product(const Layer& given, float* u, ParallelFor parallel) {
  if (given.geometry.neurons() == 0) return;
  if (is_depthwise(given.geometry) && given.counted()) return multiply_depthwise_counts(given, u, parallel);
  const Layer layer = by_fixed_way(given, true);
  const TimedWay timed(layer, window_ways(layer), Task::kProduct);
  const bool digits = takes_digits(timed.way());
  const Prepared prepared(layer, !digits, digits, parallel);
  multiply_windows({layer, prepared, timed.way()}, u, parallel);
  timed.end();
}

}  // namespace tandem::cpu
