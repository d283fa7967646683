// Runs the templates of csrc/core on matrices from standard input, for a test to judge what comes out. Buffers are of
// the exact size, so that a sanitizer sees every step beside them.
//
//   small_svd float|double m batch warm spacious    in: batch matrices (and starts)   out: U, S, V, sweeps, status
//   factor    float|double m                        in: G                             out: R, P, independent
//   warm_svd  l q m t                               in: Y, Z (float, columns)         out: A, S, B, status, info
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/cholesky.h"
#include "core/small_svd.h"
#include "core/team.h"
#include "cpu/launcher.h"

using namespace lip_fast;

namespace {

template <class T>
std::vector<T> read(std::size_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != count) std::exit(3);
  return values;
}

template <class T>
std::vector<T> poisoned(std::size_t count) {
  return std::vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

template <class T>
void write(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

template <class T>
void small(char** argument) {
  const int m = std::atoi(argument[0]), batch = std::atoi(argument[1]);
  const bool warm = std::atoi(argument[2]) != 0, spacious = std::atoi(argument[3]) != 0;
  const std::size_t count = static_cast<std::size_t>(batch) * m * m;
  const auto matrix = read<T>(count), start = read<T>(warm ? count : 0);
  auto U = poisoned<T>(count), S = poisoned<T>(static_cast<std::size_t>(batch) * m), V = poisoned<T>(count),
       work = poisoned<T>(count);
  std::vector<std::int64_t> sweeps(batch, -7), status(batch, -7);
  SerialTeam team;
  const SmallSvd<T> first{matrix.data(), warm ? start.data() : nullptr, U.data(), S.data(), V.data(), work.data(), m,
                          spacious, sweeps.data(), status.data()};
  for (int n = 0; n < batch; ++n) {
    auto shared = poisoned<T>(small_svd_shared(m, spacious));
    small_svd_block(team, nth(first, n), shared.data());
  }
  write(U);
  write(S);
  write(V);
  write(sweeps);
  write(status);
}

template <class T>
void cholesky(char** argument) {
  const int m = std::atoi(argument[0]), ld = m + 3;
  const auto G = read<T>(static_cast<std::size_t>(m) * m);
  auto work = poisoned<T>(static_cast<std::size_t>(m) * ld), scale = poisoned<T>(m), pivot = poisoned<T>(m);
  for (int e = 0; e < m * m; ++e) work[e / m * ld + e % m] = G[e];
  auto R = poisoned<T>(static_cast<std::size_t>(m) * m), P = R;
  SerialTeam team;
  const std::int64_t independent = factor(team, work.data(), m, ld, scale.data(), pivot.data());
  if (independent >= 0) {
    for (int e = 0; e < m * m; ++e) R[e] = upper(work.data(), ld, scale.data(), pivot.data(), e / m, e % m);
    invert(team, work.data(), m, ld, scale.data(), pivot.data());
    for (int e = 0; e < m * m; ++e) P[e] = work[e / m * ld + e % m];
  }
  write(R);
  write(P);
  write(std::vector<std::int64_t>{independent});
}

void warm(char** argument) {
  const std::int64_t l = std::atoll(argument[0]), q = std::atoll(argument[1]);
  const int m = std::atoi(argument[2]), t = std::atoi(argument[3]);
  const auto Y = read<float>(l * m), Z = read<float>(q * m);
  auto A = poisoned<float>(l * t), S = poisoned<float>(t), B = poisoned<float>(q * t);
  cpu::SerialLauncher<float> launcher;
  auto workspace = poisoned<float>(warm_workspace<float>(launcher, l, q, m));
  std::int64_t status = -7;
  lip_fast::warm_svd(launcher, WarmSvd<float>{l, q, m, t, Y.data(), Z.data(), A.data(), S.data(), B.data(), &status,
                                              workspace.data()});
  const Workspace<float> carved(workspace.data(), l, q, m, most_blocks(launcher, l, q, m));
  write(A);
  write(S);
  write(B);
  // kPassV belongs to the stage before.
  write(std::vector<std::int64_t>{status});
  write(std::vector<int>(carved.info + kPassY, carved.info + kInfos));
}

}  // namespace

int main(int count, char** argument) {
  const std::string what = count > 2 ? argument[1] : "";
  const bool wide = what != "warm_svd" && std::string(argument[2]) == "double";
  if (what == "small_svd") {
    wide ? small<double>(argument + 3) : small<float>(argument + 3);
  } else if (what == "factor") {
    wide ? cholesky<double>(argument + 3) : cholesky<float>(argument + 3);
  } else if (what == "warm_svd") {
    warm(argument + 2);
  } else {
    return 2;
  }
  return 0;
}
