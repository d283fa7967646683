// The stages of a step by products, for one instruction set: see cpu/projected_step.h.
#pragma once

#include "cpu/batch_sums.h"
#include "cpu/large_product.h"
#include "cpu/small_algebra.h"
#include "cpu/triangular.h"

namespace lip_fast::cpu {

template <int W>
class ProjectedStages {
 public:
  ProjectedStages(ProjectedStep& step, const ProjectedRoom& room, const Crew& crew)
      : a(step), room(room), crew(crew), n(room.n), t(room.t), m(room.m), tp(room.tp), mp(room.mp), np(room.np), qp(room.qp), both(room.both),
        tile(room.tile + room.tile_size * crew.rank()) {}

  LIP_FAST_INLINE void run() {
    sketch();
    keep();
    if (!sound()) return;
    complement();
    if (!sound()) return;
    project();
    decompose();
    if (!sound()) return;
    rotate();
    judge();
    if (!sound()) return;
    follow();
    if (a.factors.Q != nullptr) return;
    refit_tail();
    if (a.applied) rebuild();
  }

 private:
  static constexpr int D = W / 2;  // lanes of double
  using Product = LargeProduct<W>;

  // The constants of lip_fast/projected.py, with their reasons; squared where pivots of Gram matrices are.
  static constexpr float kVanished = 3e-6f, kPivot = 0.1f, kLargestAngle = 0.25f;
  static constexpr double kDependentBeside = 1e-11, kLeastPivot = 1e-6;

  /// Whether the step goes on, as all threads see it before one of them goes on.
  LIP_FAST_INLINE bool sound() const {
    const bool goes_on = a.status == kSound;
    crew.sync();
    return goes_on;
  }

  /// Y = M basis, and M times fresh signs in the last columns of T.
  LIP_FAST_INLINE void sketch() {
    crew.each(room.features.count(), [&](std::int64_t i) {
      for (std::int64_t j = room.features.begin(i); j < room.features.end(i); ++j) {
        const std::uint32_t word =
            sign_bits(static_cast<std::uint32_t>(j), static_cast<std::uint32_t>(a.step), 0, a.seed).word[0];
        for (int c = 0; c < kSigns; ++c) room.F[j * kSigns + c] = sign(word, c);
      }
    });
    crew.each(room.rows.count(), [&](std::int64_t i) {
      const std::int64_t row = room.rows.begin(i), rows = room.rows.size(i);
      double energy = 0;
      for (std::int64_t j = 0; j < a.q; j += kFeatures) {
        const std::int64_t depth = std::min<std::int64_t>(kFeatures, a.q - j);
        float* const block = tile + kTile * kSigns;
        for (std::int64_t x = 0; x < rows; ++x) {
          const float* const from = a.M + (row + x) * a.m_stride + j;
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (std::int64_t c = 0; c < depth; ++c) {
            block[x * kFeatures + c] = from[c];
            sum += from[c] * from[c];
          }
          energy += sum;
        }
        multiply<W, float>(rows, kSigns, depth, {block, kFeatures, 1}, room.F + j * kSigns, kSigns, tile, kSigns, j > 0);
      }
      room.energy[i] = energy;
      for (std::int64_t x = 0; x < rows; ++x) {
        float* const to = room.T + (row + x) * qp + a.guards + a.r;
        std::copy(tile + x * kSigns, tile + x * kSigns + a.fresh, to);
        std::fill(to + a.fresh, to + tp - a.guards - a.r, 0.0f);
      }
    });
    Product::run(crew, room.product, a.l, a.k + a.r, a.q, {a.M, a.m_stride, 1}, {a.basis, 1, a.q}, room.Y, room.yp);
  }

  /// Q = Y R^-1 of the columns that are kept, by one pass: Y is nearly orthonormal.
  LIP_FAST_INLINE void keep() {
    Product::template run<Part::kUpperC>(crew, room.product, n, n, a.l, {room.Y, 1, room.yp}, {room.Y, room.yp, 1}, room.G, np);
    crew.one([&] {
      float longest = 0;
      for (int i = 0; i < n; ++i) {
        room.lengths[i] = std::sqrt(room.G[i * np + i]);
        std::fill(room.G + i * np + n, room.G + (i + 1) * np, 0.0f);
        longest = std::max(longest, room.lengths[i]);
      }
      // No comparison holds with what is no number.
      for (int i = 0; i < n; ++i) {
        if (!(room.lengths[i] > kVanished * longest)) a.status = kNotConverged;
      }
    });
    if (!sound()) return;
    Triangular<W> factor(crew, n, np, room.G, room.lengths, room.inverse, room.corner, tile);
    factor.factor(room.least);
    crew.one([&] {
      if (!(*room.least > kPivot)) a.status = kNotConverged;
    });
    if (!sound()) return;
    factor.invert();
    Product::template run<Part::kUpperB>(crew, room.product, a.l, n, n, {room.Y, room.yp, 1}, {room.inverse, np, 1}, room.Q, qp);
    unit_lengths();
    check_orthogonal();
  }

  /// Columns of Q that one pass leaves 1e-7 too long on average: the weight would grow by as much in each step.
  LIP_FAST_INLINE void unit_lengths() {
    crew.each(room.of_rows.count(), [&](std::int64_t part) {
      double* const squares = room.squares + part * np;
      std::fill(squares, squares + n, 0.0);
      for (std::int64_t i = room.of_rows.begin(part); i < room.of_rows.end(part); ++i) add_squares(n, room.Q + i * qp, squares);
    });
    crew.one([&] {
      for (int c = 0; c < n; ++c) room.lengths[c] = static_cast<float>(1 - 1 / std::sqrt(sum_of(room.of_rows, room.squares + c, np)));
    });
    crew.each(room.rows.count(), [&](std::int64_t tile_of_rows) {
      for (std::int64_t i = room.rows.begin(tile_of_rows); i < room.rows.end(tile_of_rows); ++i) {
        float* const row = room.Q + i * qp;
#pragma omp simd
        for (int c = 0; c < n; ++c) row[c] -= room.lengths[c] * row[c];
      }
    });
  }

  /// Q^T Q has as many numbers as Q: it is seen in its products with sign vectors, as in lip_fast/projected.py.
  LIP_FAST_INLINE void check_orthogonal() {
    float* const products = room.beside;
    crew.each(room.rows.count(), [&](std::int64_t i) {
      const std::int64_t row = room.rows.begin(i);
      multiply<W, float>(room.rows.size(i), kSigns, n, {room.Q + row * qp, qp, 1}, room.F, kSigns, products + row * kSigns, kSigns, false);
    });
    crew.each(room.of_kept.count(), [&](std::int64_t part) {
      const std::int64_t first = room.of_kept.begin(part);
      double largest = 0;
      for (std::int64_t c = first; c < room.of_kept.end(part); c += kFewRows) {
        const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_kept.end(part) - c);
        multiply<W, float>(rows, kSigns, a.l, {room.Q + c, 1, qp}, products, kSigns, tile, kSigns, false);
        for (std::int64_t e = 0; e < rows * kSigns; ++e) largest = std::max<double>(largest, std::fabs(tile[e] - room.F[c * kSigns + e]));
      }
      room.squares[part] = largest;
    });
    crew.one([&] {
      for (std::int64_t part = 0; part < room.of_kept.count(); ++part) {
        if (!(room.squares[part] <= orthogonality<double>())) a.status = kNotOrthogonal;
      }
    });
  }

  /// T: orthonormal beside Q. Taken out of Q twice, which is enough (Parlett, The Symmetric Eigenvalue Problem, 6.9).
  LIP_FAST_INLINE void complement() {
    crew.each(room.rows.count(), [&](std::int64_t tile_of_rows) {
      for (std::int64_t i = room.rows.begin(tile_of_rows); i < room.rows.end(tile_of_rows); ++i) {
        std::copy(room.Y + i * room.yp + n, room.Y + i * room.yp + a.k + a.r, room.T + i * qp);
      }
    });
    take_out(kDependentBeside, false);
    if (!sound()) return;
    take_out(kLeastPivot, true);
  }

  /// T = (T - Q Q^T T) R^-1, where T may be nearly orthonormal before.
  LIP_FAST_INLINE void take_out(double least, bool nearly) {
    Product::run(crew, room.product, n, tp, a.l, {room.Q, 1, qp}, {room.T, qp, 1}, room.along, tp);
    Product::run(crew, room.product, a.l, tp, n, {room.Q, qp, 1}, {room.along, tp, 1}, room.beside, tp);
    crew.each(room.of_rows.count(), [&](std::int64_t part) {
      double* const G = room.grams + part * tp * tp;
      double* const in_double = reinterpret_cast<double*>(tile);
      for (std::int64_t row = room.of_rows.begin(part); row < room.of_rows.end(part); row += kFewRows) {
        const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_rows.end(part) - row);
        for (std::int64_t i = 0; i < rows; ++i) {
          float *const T = room.T + (row + i) * qp, *const beside = room.beside + (row + i) * tp;
          for (int c = 0; c < tp; ++c) T[c] -= beside[c];
        }
        gram_in_double<D>(rows, tp, room.T + row * qp, qp, in_double, G, row > room.of_rows.begin(part));
      }
    });
    crew.one([&] {
      double *const G = room.small, *const inverse = G + tp * tp;
      add_up<D>(room.of_rows, tp, room.grams, G);
      const bool finite = factor<D>(G, t, tp, least).finite;
      bool whole = finite;
      // Fresh columns may find nothing where the weight has no more directions: they are zeros then.
      for (int i = 0; i < a.guards + a.r; ++i) whole = whole && G[i * tp + i] > 0;
      if (!whole) {
        a.status = finite ? kRankDeficient : kNotFinite;
        return;
      }
      invert<D>(G, inverse, t, tp);
      // Near I without its 1: in float it would be rounded to one side of it, and the same one each time.
      for (int e = 0; e < tp * tp; ++e) {
        room.P[e] = e < t * tp ? static_cast<float>(inverse[e] - (nearly && e / tp == e % tp ? 1.0 : 0.0)) : 0.0f;
      }
    });
    if (!sound()) return;
    crew.each(room.rows.count(), [&](std::int64_t i) {
      float* const T = room.T + room.rows.begin(i) * qp;
      const std::int64_t rows = room.rows.size(i);
      for (std::int64_t x = 0; x < rows; ++x) std::copy(T + x * qp, T + x * qp + tp, tile + x * tp);
      multiply<W, float>(rows, tp, t, {tile, tp, 1}, room.P, tp, T, qp, nearly);
    });
  }

  /// Z = M^T Q and the image M^T T, as rows; the image again as columns.
  LIP_FAST_INLINE void project() {
    Product::run(crew, room.product, n + t, a.q, a.l, {room.Q, 1, qp}, {a.M, a.m_stride, 1}, room.Z, a.q);
    crew.each(room.features.count(), [&](std::int64_t slab) {
      const std::int64_t x = room.features.begin(slab), count = room.features.size(slab);
      float* const to = room.image + x * tp;
      transpose_all<W>(count, t, room.Z + n * a.q + x, a.q, to, tp);
      for (std::int64_t i = 0; i < count; ++i) std::fill(to + i * tp + t, to + (i + 1) * tp, 0.0f);
    });
  }

  /// M^T T = C P^T, C with orthogonal columns of lengths S, and A = T P.
  LIP_FAST_INLINE void decompose() {
    double* const in_double = reinterpret_cast<double*>(tile);
    crew.each(room.of_features.count(), [&](std::int64_t part) {
      double* const G = room.grams + part * tp * tp;
      for (std::int64_t row = room.of_features.begin(part); row < room.of_features.end(part); row += kFewRows) {
        const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_features.end(part) - row);
        gram_in_double<D>(rows, tp, room.image + row * tp, tp, in_double, G, row > room.of_features.begin(part));
      }
    });
    double* const P = room.small;
    crew.one([&] {
      double *const H = P + tp * tp, *const work = H + tp * tp;
      add_up<D>(room.of_features, tp, room.grams, H);
      double lambda[kMostSmall];
      std::fill(P, P + tp * tp, 0.0);
      a.status = decompose_symmetric<W>(H, P, lambda, t, t, tp, work, tile);
      for (int e = 0; e < tp * tp; ++e) room.P[e] = static_cast<float>(P[e]);
    });
    if (!sound()) return;
    crew.each(room.of_features.count(), [&](std::int64_t part) {
      double *const squares = room.squares + part * tp, *const C = in_double + kFewRows * tp;
      std::fill(squares, squares + tp, 0.0);
      for (std::int64_t row = room.of_features.begin(part); row < room.of_features.end(part); row += kFewRows) {
        const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_features.end(part) - row);
        const float* const image = room.image + row * tp;
        for (std::int64_t e = 0; e < rows * tp; ++e) in_double[e] = image[e];
        multiply<D, double>(rows, tp, t, {in_double, tp, 1}, P, tp, C, tp, false);
        for (std::int64_t i = 0; i < rows; ++i) {
          float* const to = room.right + (row + i) * both;
          for (int c = 0; c < tp; ++c) {
            to[c] = static_cast<float>(C[i * tp + c]);
            squares[c] += C[i * tp + c] * C[i * tp + c];
          }
        }
      }
    });
    crew.one([&] {
      for (int c = 0; c < t; ++c) room.of_S[c] = std::sqrt(sum_of(room.of_features, room.squares + c, tp));
    });
    crew.each(room.rows.count(), [&](std::int64_t i) {
      const std::int64_t row = room.rows.begin(i);
      multiply<W, float>(room.rows.size(i), tp, t, {room.T + row * qp, qp, 1}, room.P, tp, room.left + row * both, both, false);
    });
  }

  /// The tail as it is once both parts are rotated: see lip_fast/projected.py.
  LIP_FAST_INLINE void rotate() {
    const float* const C = room.right + a.guards;
    Product::run(crew, room.product, n, m, a.q, {room.Z, a.q, 1}, {C, both, 1}, room.E, mp);
    double shift = 0;
    for (int c = a.guards; c < t; ++c) shift = std::max(shift, room.of_S[c] * room.of_S[c]);
    // X = E / (H's diagonal and the shift); of each part its Gram matrix, E . X of the columns, and the energies.
    const int count = mp + 2;
    crew.each(room.of_kept.count(), [&](std::int64_t part) {
      double *const G = room.grams + part * mp * mp, *const sums = room.squares + part * count;
      std::fill(sums, sums + count, 0.0);
      std::fill(G, G + mp * mp, 0.0);
      for (std::int64_t first = room.of_kept.begin(part); first < room.of_kept.end(part); first += kFewRows) {
        const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_kept.end(part) - first);
        for (std::int64_t i = first; i < first + rows; ++i) {
          const double square = sum_of_squares(room.Z + i * a.q, a.q);
          room.lengths[i] = static_cast<float>(std::sqrt(square));
          sums[mp] += square;
          const double inverse = square + shift > 0 ? 1 / (square + shift) : 0.0;
          for (int c = 0; c < mp; ++c) {
            const double e = c < m ? room.E[i * mp + c] : 0.0, x = e * inverse;
            room.X[i * mp + c] = static_cast<float>(x);
            sums[c] += e * x;
            sums[mp + 1] += e * e;
          }
        }
        gram<W, float>(rows, mp, room.X + first * mp, mp, tile, false);
        for (int i = 0; i < m; ++i) {
          for (int c = i / W * W; c < mp; ++c) G[i * mp + c] += tile[i * mp + c];
        }
      }
    });
    double *const XX = room.small, *const along = XX + mp * mp, *const size = along + mp;
    crew.one([&] {
      add_up<D>(room.of_kept, mp, room.grams, XX);
      for (int c = 0; c < mp; ++c) along[c] = sum_of(room.of_kept, room.squares + c, count);
      *room.kept_energy = sum_of(room.of_kept, room.squares + mp, count);
      const double s_k = room.of_S[a.guards - 1];
      a.gamma = s_k > 0 ? std::sqrt(sum_of(room.of_kept, room.squares + mp + 1, count)) / (s_k * s_k) : 0.0;
    });
    Product::run(crew, room.product, a.q, mp, n, {room.Z, 1, a.q}, {room.X, mp, 1}, room.moved, mp);
    crew.each(room.of_features.count(), [&](std::int64_t part) {
      double* const squares = room.squares + part * mp;
      std::fill(squares, squares + mp, 0.0);
      for (std::int64_t i = room.of_features.begin(part); i < room.of_features.end(part); ++i) add_squares(mp, room.moved + i * mp, squares);
    });
    crew.one([&] { turn(shift, XX, along, size); });
    crew.each(room.of_kept.count(), [&](std::int64_t part) {
      for (std::int64_t i = room.of_kept.begin(part); i < room.of_kept.end(part); ++i) {
        for (int c = 0; c < mp; ++c) room.X[i * mp + c] *= static_cast<float>(-size[c]);
      }
    });
    crew.each(room.of_features.count(), [&](std::int64_t part) {
      double* const squares = room.squares + part * mp;
      std::fill(squares, squares + mp, 0.0);
      rotated(room.of_features.begin(part), room.of_features.end(part), room.right, [&](int c) { return static_cast<float>(-size[c]); },
              room.N);
      for (std::int64_t i = room.of_features.begin(part); i < room.of_features.end(part); ++i) {
        add_squares(mp, room.right + i * both + tp, squares);
      }
    });
    crew.one([&] {
      for (int c = 0; c < mp; ++c) room.of_tail[c] = std::sqrt(sum_of(room.of_features, room.squares + c, mp));
    });
    crew.each(room.features.count(), [&](std::int64_t slab) {
      for (std::int64_t i = room.features.begin(slab); i < room.features.end(slab); ++i) {
        float* const B = room.right + i * both + tp;
        for (int c = 0; c < mp; ++c) B[c] = room.of_tail[c] > 0 ? static_cast<float>(B[c] / room.of_tail[c]) : 0.0f;
      }
    });
    Product::run(crew, room.product, a.l, mp, n, {room.Q, qp, 1}, {room.X, mp, 1}, room.moved, mp);
    crew.each(room.rows.count(), [&](std::int64_t i) {
      rotated(room.rows.begin(i), room.rows.end(i), room.left, [](int) { return 1.0f; }, room.N_unit);
    });
  }

  /// How far each column of X goes, at most by an angle in all, and the small matrices that keep lengths.
  LIP_FAST_INLINE void turn(double shift, double* XX, const double* along, double* size) {
    double angle = 0;
    for (int c = 0; c < mp; ++c) {
      const double square = XX[c * mp + c];
      const double curvature = sum_of(room.of_features, room.squares + c, mp) + shift * square;
      size[c] = curvature > 0 ? along[c] / curvature : 0.0;
      angle += size[c] * size[c] * square;
    }
    angle = std::sqrt(angle);
    for (int c = 0; c < mp; ++c) size[c] *= angle > kLargestAngle ? kLargestAngle / angle : 1.0;
    double *const P = room.grams, *const PP = P + mp * mp, *const N = PP + mp * mp, *const PN = N + mp * mp;
    for (int i = 0; i < mp; ++i) {
      for (int c = 0; c < mp; ++c) P[i * mp + c] = size[i] * size[c] * (i <= c ? XX[i * mp + c] : XX[c * mp + i]);
    }
    // (I + P)^(-1/2), to P^2.
    multiply<D, double>(mp, mp, mp, {P, mp, 1}, P, mp, PP, mp, false);
    for (int e = 0; e < mp * mp; ++e) N[e] = (e / mp == e % mp ? 1.0 : 0.0) - 0.5 * P[e] + 0.375 * PP[e];
    multiply<D, double>(mp, mp, mp, {P, mp, 1}, N, mp, PN, mp, false);
    for (int c = 0; c < mp; ++c) {
      // What the series leaves of the lengths of A's columns.
      double square = 0;
      for (int i = 0; i < mp; ++i) square += N[i * mp + c] * (N[i * mp + c] + PN[i * mp + c]);
      const double inverse = 1 / std::sqrt(square);
      for (int i = 0; i < mp; ++i) {
        const double one = i == c ? 1.0 : 0.0, value = N[i * mp + c];
        room.N[i * mp + c] = static_cast<float>(value - one);
        room.N_unit[i * mp + c] = static_cast<float>(value * inverse - one);
      }
    }
  }

  /// Rows of the tail beside what they come from: (its columns + moved size) (I + N).
  template <class Size>
  LIP_FAST_INLINE void rotated(std::int64_t first, std::int64_t last, float* matrix, Size size, const float* N) {
    for (std::int64_t row = first; row < last; row += kTile) {
      const std::int64_t rows = std::min<std::int64_t>(kTile, last - row);
      for (std::int64_t i = 0; i < rows; ++i) {
        const float *const from = matrix + (row + i) * both + a.guards, *const moved = room.moved + (row + i) * mp;
        float *const difference = tile + i * mp, *const to = matrix + (row + i) * both + tp;
        for (int c = 0; c < mp; ++c) {
          difference[c] = c < m ? from[c] + size(c) * moved[c] : 0.0f;
          to[c] = difference[c];
        }
      }
      multiply<W, float>(rows, mp, m, {tile, mp, 1}, N, mp, matrix + row * both + tp, both, true);
    }
  }

  /// Whether the step may be taken: all numbers are finite, and not too much would be removed.
  LIP_FAST_INLINE void judge() {
    crew.one([&] {
      double total = 0, found = *room.kept_energy;
      for (std::int64_t i = 0; i < room.rows.count(); ++i) total += room.energy[i];
      for (int c = 0; c < a.guards + a.r; ++c) found += room.of_S[c] * room.of_S[c];
      double tail = 0;
      for (int c = 0; c < m; ++c) tail += room.of_tail[c];
      a.deeper = total > 0 ? (total - found) / total : 0.0;
      if (!(total <= kLargestSquare && found <= kLargestSquare && tail <= kLargestSquare)) a.status = kNotFinite;
      if (a.drop && !(a.deeper <= a.deepest)) a.status = kNotConverged;
      a.s_k = static_cast<float>(room.of_S[a.guards - 1]);
      a.s_1 = *std::max_element(room.lengths, room.lengths + n);
      for (int c = 0; c < a.guards; ++c) a.s_1 = std::max(a.s_1, static_cast<float>(room.of_S[c]));
      for (int c = 0; c < m; ++c) {
        a.s_1 = std::max(a.s_1, static_cast<float>(room.of_tail[c]));
        if (a.factors.S != nullptr) a.factors.S[c] = static_cast<float>(room.of_tail[c]);
      }
    });
  }

  /// The basis of the next step: Z and the guards divided by their squared lengths, and B of the tail.
  LIP_FAST_INLINE void follow() {
    const float longest = *std::max_element(room.lengths, room.lengths + n), least = kVanished * longest;
    crew.each(room.of_kept.count(), [&](std::int64_t part) {
      for (std::int64_t i = room.of_kept.begin(part); i < room.of_kept.end(part); ++i) {
        const float length = room.lengths[i] > least ? room.lengths[i] : least > 0 ? least : 1.0f;
        const float *const from = room.Z + i * a.q, inverse = static_cast<float>(1.0 / (static_cast<double>(length) * length));
        float* const to = a.following + i * a.q;
#pragma omp simd
        for (std::int64_t x = 0; x < a.q; ++x) to[x] = from[x] * inverse;
      }
    });
    crew.each(room.features.count(), [&](std::int64_t slab) {
      const std::int64_t x = room.features.begin(slab), count = room.features.size(slab);
      float* const to = a.following + static_cast<std::int64_t>(n) * a.q + x;
      transpose_all<W>(a.guards, count, room.right + x * both, both, to, a.q);
      transpose_all<W>(a.r, count, room.right + x * both + tp, both, to + a.guards * a.q, a.q);
      for (int c = 0; c < a.guards; ++c) {
        const double S = room.of_S[c];
        const float inverse = S > 0 ? static_cast<float>(1 / (S * S)) : 1.0f;
        for (std::int64_t i = 0; i < count; ++i) to[c * a.q + i] *= inverse;
      }
    });
  }

  /// The values of the tail, and A of what is added to the weight.
  LIP_FAST_INLINE void refit_tail() {
    const std::int64_t each = count_of_sums(a.r);
    crew.each(room.of_batch.count(), [&](std::int64_t part) {
      batch_sums<W>(a.batch, room.of_batch.begin(part), room.of_batch.end(part), a.l, a.q, room.right + tp, both, mp, 0, a.r, tile,
                    room.sums + part * each, [&](std::int64_t label) { return room.left + label * both + tp; });
    });
    if (a.bias != nullptr) {
      crew.each(room.of_rows.count(), [&](std::int64_t part) {
        double* const sum = room.squares + part * mp;
        std::fill(sum, sum + mp, 0.0);
        for (std::int64_t i = room.of_rows.begin(part); i < room.of_rows.end(part); ++i) {
          const double bias = a.bias[i];
          for (int c = 0; c < a.r; ++c) sum[c] += bias * room.left[i * both + tp + c];
        }
      });
    }
    double* const delta = room.small;
    crew.one([&] {
      double total[count_of_sums(kMostSmall)];
      for (std::int64_t e = 0; e < each; ++e) total[e] = sum_of(room.of_batch, room.sums + e, each);
      if (a.bias != nullptr) {
        for (int c = 0; c < a.r; ++c) total[c] -= total[2 * a.r + c] * sum_of(room.of_rows, room.squares + c, mp);
      }
      // Of the kept singular values, the largest and the smallest.
      float S[kMostSmall + 2], s[kMostSmall];
      S[0] = a.s_1, S[1] = a.s_k;
      for (int c = 0; c < a.r; ++c) S[2 + c] = static_cast<float>(room.of_tail[c]);
      const bool ok = true;
      a.masked = static_cast<std::int64_t>(total[3 * a.r + 1]);
      const SerialTeam team;
      refit(team, Refit<float>{S, total, total + a.r, total + 3 * a.r, &ok, 2 + a.r, 2, a.r, a.tolerance, a.clip, s, &a.applied,
                               &a.clipped});
      for (int c = 0; c < mp; ++c) delta[c] = c < a.r ? s[c] - S[2 + c] : a.drop && c < m ? -room.of_tail[c] : 0.0;
    });
  }

  /// M = Q Z^T + A C^T with what is added of the tail, or M with that.
  ///
  /// B of the tail is made of C and Z: what is added in its columns is added in those of A and Q instead, which are fewer.
  LIP_FAST_INLINE void rebuild() {
    const double* const delta = room.small;
    crew.each(room.rows.count(), [&](std::int64_t tile_of_rows) {
      const std::int64_t row = room.rows.begin(tile_of_rows), rows = room.rows.size(tile_of_rows);
      for (std::int64_t i = 0; i < rows; ++i) {
        float *const A = room.left + (row + i) * both + tp, *const scaled = tile + i * mp;
        for (int c = 0; c < mp; ++c) {
          const double by = a.drop && room.of_tail[c] > 0 ? delta[c] / room.of_tail[c] : a.drop ? 0.0 : delta[c];
          A[c] = scaled[c] = static_cast<float>(A[c] * by);
        }
      }
      if (!a.drop) return;
      multiply<W, float>(rows, mp, m, {tile, mp, 1}, room.N, mp, room.left + row * both + tp, both, true);
      for (std::int64_t i = 0; i < rows; ++i) {
        float *const A = room.left + (row + i) * both + a.guards, *const added = room.left + (row + i) * both + tp;
        for (int c = 0; c < m; ++c) A[c] += added[c];
      }
    });
    float* const added = room.left + tp;
    if (!a.drop) {
      Product::run(crew, room.product, a.l, a.q, a.r, {added, both, 1}, {room.right + tp, 1, both}, a.M, a.m_stride, true);
      return;
    }
    Product::run(crew, room.product, a.l, n, m, {added, both, 1}, {room.X, 1, mp}, room.Q, qp, true);
    Product::run(crew, room.product, a.l, a.q, n, {room.Q, qp, 1}, {room.Z, a.q, 1}, a.M, a.m_stride);
    Product::run(crew, room.product, a.l, a.q, t, {room.left, both, 1}, {room.right, 1, both}, a.M, a.m_stride, true);
  }

  static LIP_FAST_INLINE void add_squares(int count, const float* from, double* squares) {
#pragma omp simd
    for (int c = 0; c < count; ++c) squares[c] += static_cast<double>(from[c]) * from[c];
  }

  static LIP_FAST_INLINE double sum_of_squares(const float* from, std::int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t x = 0; x < count; ++x) sum += static_cast<double>(from[x]) * from[x];
    return sum;
  }

  /// The sum over the parts of a number that is ``apart`` from one part to the next.
  static LIP_FAST_INLINE double sum_of(const Parts& parts, const double* from, std::int64_t apart) {
    double sum = 0;
    for (std::int64_t part = 0; part < parts.count(); ++part) sum += from[part * apart];
    return sum;
  }

  ProjectedStep& a;
  const ProjectedRoom& room;
  const Crew& crew;
  const int n, t, m, tp, mp;
  const std::int64_t np, qp, both;
  float* const tile;  // this thread's own
};

}  // namespace lip_fast::cpu
