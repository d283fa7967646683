#include "cuda/one_read_update.cuh"

namespace lip_fast::cuda {
namespace {

__global__ void sgd_scalars_kernel(UpdateInputs inputs, float* scalars) {
  prepare_update(inputs.grad_scale, inputs.found_inf, scalars);
  SGDUpdate<true>::prepare(*inputs.lr, scalars);
}

template <class Update>
void run_sgd(const Update& update, const UpdateInputs& inputs, const UpdateProducts& products) {
  run_update(update, products, [&](float* scalars) {
    sgd_scalars_kernel<<<1, 1, 0, products.stream>>>(inputs, scalars);
  });
}

}  // namespace

std::int64_t sgd_one_read_workspace(std::int64_t rows, std::int64_t columns, int m, bool buffered) {
  return buffered ? update_workspace<SGDUpdate<true>>(rows, columns, m)
                  : update_workspace<SGDUpdate<false>>(rows, columns, m);
}

void sgd_one_read(const SGDUpdate<true>& update, const UpdateInputs& inputs, const UpdateProducts& products) {
  run_sgd(update, inputs, products);
}
void sgd_one_read(const SGDUpdate<false>& update, const UpdateInputs& inputs, const UpdateProducts& products) {
  run_sgd(update, inputs, products);
}

}  // namespace lip_fast::cuda
