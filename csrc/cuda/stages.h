// The stages of a warm SVD, one kernel each; see core/tall.h and core/warm_svd.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tall.h"
#include "core/warm_svd.h"

namespace lip_fast::cuda {

void gram(const Tall<const float>& X, int m, float* partials, int blocks, cudaStream_t stream);
void reduce(const float* partials, int count, int m, float* sum, cudaStream_t stream);
void pass(const Pass<float>& arguments, int blocks, cudaStream_t stream);
void apply(const Apply<float>& arguments, int blocks, cudaStream_t stream);
void solve(const Solve<float>& arguments, cudaStream_t stream);
void judge(const float* G, int count, int t, const int* info, std::int64_t* status, cudaStream_t stream);

}  // namespace lip_fast::cuda
