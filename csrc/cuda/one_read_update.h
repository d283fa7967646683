// An optimizer's update of a weight and both products of the power step, from one read of everything.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/weight_update.h"

namespace lip_fast::cuda {

/// What the products are taken of, and where they go. In memory: the weight, the gradient and the state (rows, columns)
/// with ``stride`` floats from row to row, each as one_read_accepts says; V (m, columns), Y (m, rows), Z (m, columns).
struct UpdateProducts {
  std::int64_t rows, columns, stride;
  const float* V;
  int m;
  float* Y;
  float* Z;
  float* workspace;
  std::int64_t workspace_size;
  cudaStream_t stream;
};

/// Floats of workspace on the current device, or -1 where it cannot run the kernel for this shape: up to 80 directions
/// on devices with clusters and 227 kB for a block (AdamW). The first call must not be made while a stream is captured.
template <class Update>
std::int64_t update_one_read_workspace(std::int64_t rows, std::int64_t columns, int m);

/// The update, and Y = M' V and Z = M'^T Y of the new weight M' as one_read gives them; where ``found_inf`` is not 0,
/// nothing but they is written, and they are of the old one. ``update`` is without its scalars.
template <class Update>
void update_one_read(Update update, const UpdateInputs& inputs, const UpdateProducts& products);

}  // namespace lip_fast::cuda
