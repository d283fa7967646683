#include "cuda/one_read_update.cuh"

namespace lip_fast::cuda {
namespace {

__global__ void adamw_scalars_kernel(UpdateInputs inputs, const float* update_count, double beta1, double beta2,
                                     double weight_decay, float* scalars) {
  prepare_update(inputs.grad_scale, inputs.found_inf, scalars);
  AdamWUpdate::prepare(*inputs.lr, *update_count, beta1, beta2, weight_decay, scalars);
}

}  // namespace

std::int64_t adamw_one_read_workspace(std::int64_t rows, std::int64_t columns, int m) {
  return update_workspace<AdamWUpdate>(rows, columns, m);
}

void adamw_one_read(const AdamWUpdate& update, const UpdateInputs& inputs, const float* update_count, double beta1,
                    double beta2, double weight_decay, const UpdateProducts& products) {
  run_update(update, products, [&](float* scalars) {
    adamw_scalars_kernel<<<1, 1, 0, products.stream>>>(inputs, update_count, beta1, beta2, weight_decay, scalars);
  });
}

}  // namespace lip_fast::cuda
