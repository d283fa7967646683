// An optimizer's update on the one-read kernel on a GPU, for any of them.
#pragma once

#define LIP_FAST_FEW_REGISTERS
#include "cuda/one_read.cuh"
#include "cuda/one_read_update.h"

// Devices of compute capability 8 have no clusters, and those of 12 have 99 kB for a block: no plan is made for them,
// and no code.
#define LIP_FAST_UPDATES_RUN (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)

namespace lip_fast::cuda {
namespace {

template <class Shape, class Update>
__global__ void __launch_bounds__(kOneReadThreads, 1) one_read_update_kernel(OneRead arguments, Update update) {
#if LIP_FAST_UPDATES_RUN
  extern __shared__ __align__(16) unsigned char one_read_bytes[];
  ClusterBlock block(reinterpret_cast<float*>(one_read_bytes));
  one_read_thread<Shape>(block, arguments, update);
#endif
}

/// Whether the code that runs here is that of a device with clusters and room for an update.
template <class Kernel>
bool compiled_for_updates(Kernel* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "one_read: kernel");
  return attributes.ptxVersion >= 90 && attributes.ptxVersion < 120;
}

template <class Update>
Plan update_plan(std::int64_t columns, int m) {
  return plan_for(columns, m, [=](std::size_t shared) {
    Plan plan;
    if (!compiled_for_updates(one_read_update_kernel<OneReadShape<48, kStep, 5, Update::kHeld>, Update>) ||
        !plan_update<Update>(columns, m, shared, &plan)) {
      return Plan();
    }
    with_update_shape<Update>(plan.width, [&](auto shape) {
      configure<decltype(shape)>(one_read_update_kernel<decltype(shape), Update>, &plan);
    });
    return plan;
  });
}

template <class Update>
__global__ void update_scalars_kernel(UpdateInputs inputs, float* scalars) {
  prepare_update<Update>(inputs, scalars);
}

}  // namespace

/// The scalars first, then the parts of Z.
template <class Update>
std::int64_t update_one_read_workspace(std::int64_t rows, std::int64_t columns, int m) {
  const std::int64_t partials = update_plan<Update>(columns, m).workspace(rows, columns);
  return partials < 0 ? -1 : kMaxScalars + partials;
}

template <class Update>
void update_one_read(Update update, const UpdateInputs& inputs, const UpdateProducts& a) {
  const Plan plan = update_plan<Update>(a.columns, a.m);
  expect_runnable(plan, a.columns, a.m);
  expect_layout("M", update.M, a.columns, a.stride);
  for (const float* const X : update.held) expect_layout("the gradient and the state", X, a.columns, a.stride);
  expect_workspace(a.workspace_size, kMaxScalars + plan.workspace(a.rows, a.columns));
  float* const partials = a.workspace + kMaxScalars;
  update_scalars_kernel<Update><<<1, 1, 0, a.stream>>>(inputs, a.workspace);
  check(cudaGetLastError(), "one_read: scalars");
  update.scalars = a.workspace;
  const int groups = plan.groups(a.rows);
  if (groups > 0) {
    const OneRead arguments{update.M, a.rows,   a.stride, static_cast<int>(a.columns), a.V, a.m,
                            a.Y,      partials, plan.tiles(a.rows)};
    with_update_shape<Update>(plan.width, [&](auto shape) {
      launch_pass<decltype(shape)>(one_read_update_kernel<decltype(shape), Update>, plan, groups, a.stream, arguments,
                                   update);
    });
  }
  sum_groups(partials, groups, a.m * a.columns, a.Z, a.stream);
}

/// In a source file for each rule: they compile side by side.
#define LIP_FAST_UPDATE_ON_ONE_READ(...)                                                                              \
  template std::int64_t lip_fast::cuda::update_one_read_workspace<__VA_ARGS__>(std::int64_t, std::int64_t, int);      \
  template void lip_fast::cuda::update_one_read<__VA_ARGS__>(__VA_ARGS__, const UpdateInputs&, const UpdateProducts&);

}  // namespace lip_fast::cuda
