#include "cuda/one_read.cuh"

namespace lip_fast::cuda {
namespace {

template <class Shape>
__global__ void __launch_bounds__(kOneReadThreads, 1) one_read_kernel(OneRead arguments) {
  extern __shared__ __align__(16) unsigned char one_read_bytes[];
  ClusterBlock block(reinterpret_cast<float*>(one_read_bytes));
  one_read_thread<Shape>(block, arguments, NoUpdate());
}

Plan plan_of(std::int64_t columns, int m) {
  return plan_for(columns, m, [=](std::size_t shared) {
    Plan plan;
    const int cluster = max_cluster(one_read_kernel<OneReadShape<32, 16, 4>>);
    if (!plan_one_read(columns, m, shared, cluster, &plan)) return Plan();
    with_one_read_shape(plan.width, plan.rows, plan.stages, [&](auto shape) {
      configure<decltype(shape)>(one_read_kernel<decltype(shape)>, &plan);
    });
    return plan;
  });
}

}  // namespace

std::int64_t one_read_workspace(std::int64_t rows, std::int64_t columns, int m) {
  return plan_of(columns, m).workspace(rows, columns);
}

void one_read(const float* M, std::int64_t rows, std::int64_t columns, std::int64_t stride, const float* V, int m,
              float* Y, float* Z, float* workspace, std::int64_t workspace_size, cudaStream_t stream) {
  const Plan plan = plan_of(columns, m);
  expect_runnable(plan, columns, m);
  expect_layout("M", M, columns, stride);
  expect_workspace(workspace_size, plan.workspace(rows, columns));
  const int groups = plan.groups(rows);
  for (int first = 0; first < m; first += plan.directions) {
    const int width = std::min(plan.directions, m - first);
    if (groups > 0) {
      const OneRead arguments{M,     rows,     stride, static_cast<int>(columns), V + first * columns,
                              width, Y + first * rows, workspace, plan.tiles(rows)};
      with_one_read_shape(plan.width, plan.rows, plan.stages, [&](auto shape) {
        launch_pass<decltype(shape)>(one_read_kernel<decltype(shape)>, plan, groups, stream, arguments);
      });
    }
    sum_groups(workspace, groups, width * columns, Z + first * columns, stream);
  }
}

}  // namespace lip_fast::cuda
