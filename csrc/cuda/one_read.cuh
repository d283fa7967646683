// What the one-read kernels share on a GPU: their block, their launch, and the sum over clusters.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "core/one_read.h"
#include "cuda/launch.h"
#include "cuda/one_read.h"

namespace lip_fast::cuda {

// Reads of a cluster's numbers: kept in registers, except where an update leaves too few of them.
#if defined(LIP_FAST_FEW_REGISTERS) && __CUDA_ARCH__ >= 1000
#define LIP_FAST_SPECIAL asm volatile
#else
#define LIP_FAST_SPECIAL asm
#endif

// Each source file has its own copies: a kernel is loaded with the file that launches it.
namespace {

// A block of a cluster; where there are no clusters, the only one.
class ClusterBlock {
 public:
  __device__ explicit ClusterBlock(float* shared) : shared_(shared) {}

  // Read anew each time: to keep what follows from it would take registers that the fragments need.
  __device__ int thread() const {
    int value;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(value));
    __builtin_assume(value >= 0 && value < kOneReadThreads);
    return value;
  }
  __device__ float* shared() const { return shared_; }
  __device__ Quad load4(const float* p) const {
    const float4 v = *reinterpret_cast<const float4*>(p);
    return Quad{v.x, v.y, v.z, v.w};
  }
  __device__ Pair load2(const float* p) const {
    const float2 v = *reinterpret_cast<const float2*>(p);
    return Pair{v.x, v.y};
  }
  __device__ float load(const float* p) const { return *p; }
  __device__ void store4(float* p, const Quad& v) const {
    *reinterpret_cast<float4*>(p) = make_float4(v.x, v.y, v.z, v.w);
  }
  __device__ void store2(float* p, const Pair& v) const { *reinterpret_cast<float2*>(p) = make_float2(v.x, v.y); }
  __device__ void store(float* p, float v) const { *p = v; }
  __device__ void put4(float* p, const Quad& v) const {
    __stcs(reinterpret_cast<float4*>(p), make_float4(v.x, v.y, v.z, v.w));
  }

  __device__ void copy_async(float* to, const float* from, int bytes) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(bytes) : "memory");
  }
  __device__ void copy_commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int N>
  __device__ void copy_wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
  }
  template <int Threads>
  __device__ void sync_part(int id) const {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
  }
  template <int Threads>
  __device__ void arrive_part(int id) const {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
  }
  __device__ void mma(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
  }

#if __CUDA_ARCH__ >= 900
  __device__ int cluster_rank() const { return special<0>(); }
  __device__ int cluster_size() const { return special<1>(); }
  __device__ int cluster() const { return special<2>(); }
  __device__ int clusters() const { return special<3>(); }
  __device__ void sync_cluster() const {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  __device__ void init_signal(Signal* s) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(s)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ void send4(float* p, int rank, const Quad& v, Signal* s) const {
    unsigned there, signal;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(signal) : "r"(address(s)), "r"(rank));
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
        "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(signal)
        : "memory");
  }
  // Bytes may come before they are expected: until one thread has said how many, the signal does not change.
  __device__ void expect(Signal* s, int bytes) const {
    if (thread() == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(s)), "r"(bytes) : "memory");
    }
  }
  __device__ void await(Signal* s, int parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(address(s)),
        "r"(parity)
        : "memory");
  }
#else
  // The block is alone: what is sent is written here, and each projector says when it has sent all.
  __device__ int cluster_rank() const { return 0; }
  __device__ int cluster_size() const { return 1; }
  __device__ int cluster() const { return static_cast<int>(blockIdx.x); }
  __device__ int clusters() const { return static_cast<int>(gridDim.x); }
  __device__ void sync_cluster() const { __syncthreads(); }
  __device__ void init_signal(Signal* s) const {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(s)), "n"(kRoleThreads) : "memory");
  }
  __device__ void send4(float* p, int, const Quad& v, Signal*) const {
    *reinterpret_cast<float4*>(p) = make_float4(v.x, v.y, v.z, v.w);
  }
  __device__ void expect(Signal* s, int) const {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(address(s)) : "memory");
  }
  __device__ void await(Signal* s, int parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(address(s)),
        "r"(parity)
        : "memory");
  }
#endif

 private:
  static __device__ unsigned address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

  template <int Which>
  static __device__ int special() {
    int value;
    if constexpr (Which == 0) LIP_FAST_SPECIAL("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
    if constexpr (Which == 1) LIP_FAST_SPECIAL("mov.u32 %0, %%cluster_nctarank;" : "=r"(value));
    if constexpr (Which == 2) LIP_FAST_SPECIAL("mov.u32 %0, %%clusterid.x;" : "=r"(value));
    if constexpr (Which == 3) LIP_FAST_SPECIAL("mov.u32 %0, %%nclusterid.x;" : "=r"(value));
    __builtin_assume(value >= 0);
    return value;
  }

  float* shared_;
};

struct Plan : OneReadPlan {
  int most_groups = 0;  // clusters that run at the same time; 0 where the device cannot run one

  int groups(std::int64_t matrix_rows) const {
    return static_cast<int>(std::min<std::int64_t>(most_groups, (matrix_rows + rows - 1) / rows));
  }
  int tiles(std::int64_t matrix_rows) const { return static_cast<int>((matrix_rows + rows - 1) / rows); }
  /// Floats for the parts of Z.
  std::int64_t workspace(std::int64_t matrix_rows, std::int64_t columns) const {
    return most_groups == 0 ? -1 : static_cast<std::int64_t>(groups(matrix_rows)) * directions * columns;
  }
};

// A launch of ``groups`` clusters; ``attribute`` is where its only attribute is kept.
template <class Shape>
cudaLaunchConfig_t configuration(const OneReadPlan& plan, int groups, cudaStream_t stream,
                                 cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(groups) * plan.cluster);
  config.blockDim = dim3(kOneReadThreads);
  config.dynamicSmemBytes = Shape::kBytes;
  config.stream = stream;
  if (plan.cluster > 1) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = plan.cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    config.attrs = attribute;
    config.numAttrs = 1;
  }
  return config;
}

/// Leaves a kernel ready to launch, and says in the plan how many clusters of it run at the same time.
template <class Shape, class Kernel>
void configure(Kernel* kernel, Plan* plan) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(Shape::kBytes)),
        "one_read: shared memory");
  constexpr int kPortableCluster = 8;
  if (plan->cluster > kPortableCluster &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) {
    cudaGetLastError();  // a device without clusters of this size is no error
    return;
  }
  if (plan->cluster == 1) {
    plan->most_groups = device_attribute(cudaDevAttrMultiProcessorCount);
    return;
  }
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = configuration<Shape>(*plan, 1, nullptr, &attribute);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    return;
  }
  plan->most_groups = clusters;
}

/// Clusters that the code which runs here was compiled for: a newer device can have taken what was meant for an older.
template <class Kernel>
int max_cluster(Kernel* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "one_read: kernel");
  return attributes.ptxVersion >= 90 ? kMaxCluster : 1;
}

/// The plan for the current device. Made once, by ``make(columns, m, shared bytes of a block)``: a launch asks nothing
/// of CUDA that a capture forbids. ``make`` is one of a kind in its source file.
template <class Make>
Plan plan_for(std::int64_t columns, int m, Make&& make) {
  static std::mutex mutex;
  static std::map<std::tuple<int, std::int64_t, int>, Plan> plans;
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple<int, std::int64_t, int> key(device, columns, m);
  const auto known = plans.find(key);
  if (known != plans.end()) return known->second;
  const auto shared = static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  const Plan plan = make(shared);
  plans.emplace(key, plan);
  return plan;
}

template <class Shape, class Kernel, class... Arguments>
void launch_pass(Kernel* kernel, const Plan& plan, int groups, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = configuration<Shape>(plan, groups, stream, &attribute);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "one_read");
}

constexpr int kSumThreads = 256;

// The groups' sums, one after the other: a thread serves one element of Z.
__global__ void __launch_bounds__(kSumThreads)
    sum_groups_kernel(const float* partials, int groups, std::int64_t count, float* Z) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= count) return;
  float total = 0.0f;
#pragma unroll 8
  for (int group = 0; group < groups; ++group) total += partials[group * count + i];
  Z[i] = total;
}

void sum_groups(const float* partials, int groups, std::int64_t count, float* Z, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((count + kSumThreads - 1) / kSumThreads);
  sum_groups_kernel<<<blocks, kSumThreads, 0, stream>>>(partials, groups, count, Z);
  check(cudaGetLastError(), "one_read: sum over groups");
}

void expect_runnable(const Plan& plan, std::int64_t columns, int m) {
  if (plan.most_groups > 0) return;
  throw std::invalid_argument("one_read: expected a shape that this device can run, got " + std::to_string(columns) +
                              " columns and " + std::to_string(m) + " directions");
}

void expect_layout(const char* name, const float* X, std::int64_t columns, std::int64_t stride) {
  if (stride >= columns && one_read_accepts(X, stride)) return;
  throw std::invalid_argument("one_read: expected rows of " + std::string(name) + " on 16-byte boundaries, " +
                              std::to_string(columns) + " or more floats apart, got address " +
                              std::to_string(reinterpret_cast<std::uintptr_t>(X)) + " and stride " +
                              std::to_string(stride));
}

void expect_workspace(std::int64_t size, std::int64_t needed) {
  if (size >= needed) return;
  throw std::invalid_argument("one_read: expected a workspace of " + std::to_string(needed) + " floats, got " +
                              std::to_string(size));
}

}  // namespace
}  // namespace lip_fast::cuda
