// AdamW's or SGD's update of a weight and both products of the power step, from one read of everything.
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

/// What lies in memory of an update: single values; the last two may be null.
struct UpdateInputs {
  const float* lr;
  const float* grad_scale;
  const float* found_inf;
};

/// Floats of workspace on the current device, or -1 where it cannot run the kernel for this shape: up to 80 directions
/// on devices with clusters and 227 kB for a block (AdamW). The first call must not be made while a stream is captured.
std::int64_t adamw_one_read_workspace(std::int64_t rows, std::int64_t columns, int m);
std::int64_t sgd_one_read_workspace(std::int64_t rows, std::int64_t columns, int m, bool buffered);

/// The update, and Y = M' V and Z = M'^T Y of the new weight M' as one_read gives them; where ``found_inf`` is not 0,
/// nothing but they is written, and they are of the old one. ``update`` is without its scalars.
void adamw_one_read(const AdamWUpdate& update, const UpdateInputs& inputs, const float* update_count, double beta1,
                    double beta2, double weight_decay, const UpdateProducts& products);
void sgd_one_read(const SGDUpdate<true>& update, const UpdateInputs& inputs, const UpdateProducts& products);
void sgd_one_read(const SGDUpdate<false>& update, const UpdateInputs& inputs, const UpdateProducts& products);

}  // namespace lip_fast::cuda
