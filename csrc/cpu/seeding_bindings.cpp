#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/seeding.h"
#include "seeding_bindings.h"

namespace py = pybind11;

namespace alges {
namespace {

// (keys, global indices, positions, largest D^2, rows measured in full)
py::tuple result(const SeedingPool& pool, const Pass& pass) {
  py::list keys, indices, positions;
  for (const Candidate& candidate : pool.candidates()) {
    keys.append(candidate.key);
    indices.append(candidate.index);
    positions.append(candidate.position);
  }
  return py::make_tuple(keys, indices, positions, pass.largest, pass.measured);
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_seeding(py::module_& m) {
  py::class_<Draw>(m, "SeedingDraw")
      .def(py::init([](const std::string& rule, uint64_t seed, uint32_t round, int trials) {
        return Draw{draw_rule(rule), seed, round, trials};
      }));
  // Addresses are held, not what lies there: alges_fast/seeding/native.py keeps the tensors alive.
  py::class_<SeedingPool>(m, "SeedingPool")
      .def(py::init([](uintptr_t points, const std::string& type, int64_t rows, int64_t columns, int64_t stride,
                       int64_t first_index, uintptr_t index, uintptr_t min_sq_distance, uintptr_t weights,
                       uintptr_t nearest, bool sketch) {
        return new SeedingPool(shard_of(points, type, rows, columns, stride, first_index, index, min_sq_distance, weights,
                                        nearest),
                               sketch);
      }))
      .def("absorb",
           [](SeedingPool& pool, uintptr_t centres, int count, const Draw& draw, int threads) {
             Pass pass;
             {
               py::gil_scoped_release release;
               pass = pool.absorb(reinterpret_cast<const void*>(centres), count, draw, threads);
             }
             return result(pool, pass);
           })
      // Global indices of up to `count` picks, the first of them what the last pass drew.
      .def("chain",
           [](SeedingPool& pool, Draw draw, int count, int threads) {
             std::vector<int64_t> indices;
             for (; count > 0 && pool.candidates().front().index >= 0; --count) {
               indices.push_back(pool.candidates().front().index);
               draw.round += 1;
               {
                 py::gil_scoped_release release;
                 pool.absorb_candidate(draw, threads);
               }
               if (PyErr_CheckSignals() != 0) throw py::error_already_set();
             }
             return indices;
           })
      .def("potentials",
           [](SeedingPool& pool, uintptr_t centres, int count, double scale, int threads) {
             py::gil_scoped_release release;
             return pool.potentials(reinterpret_cast<const void*>(centres), count, scale, threads);
           })
      .def("accept", [](SeedingPool& pool, int trial, const Draw& draw, int threads) {
        Pass pass;
        {
          py::gil_scoped_release release;
          pass = pool.accept(trial, draw, threads);
        }
        return result(pool, pass);
      });
  // Addresses and sizes in the order of csrc/cpu/seeding.h; alges_fast/seeding/sketched.py keeps the tensors alive.
  m.def("sketch_rows", [](uintptr_t points, int64_t rows, int64_t blocks, int64_t columns, int64_t kept, uintptr_t basis,
                          uintptr_t factors, double rounding, int64_t width, uintptr_t codes, uintptr_t scale,
                          uintptr_t error, uintptr_t rest, uintptr_t norms, int threads) {
    py::gil_scoped_release release;
    const Sketching sketching{at<const float>(points), rows, blocks, columns, kept, at<const float>(basis),
                              at<const float>(factors), rounding, width, at<int8_t>(codes), at<float>(scale),
                              at<float>(error), at<float>(rest), at<double>(norms), threads};
    ALGES_DISPATCH(sketch_rows(sketching));
  });
  py::class_<SketchedRows>(m, "SketchedRows")
      .def(py::init([](int64_t width, uintptr_t codes, uintptr_t scale, uintptr_t norm, uintptr_t error, uintptr_t rest,
                       float rest_share, float rest_slop, float code_norm_share, uintptr_t upper, uintptr_t lower,
                       uintptr_t nearest) {
        return SketchedRows{width, at<const int8_t>(codes), at<const float>(scale), at<const float>(norm),
                            at<const float>(error), at<const float>(rest), rest_share, rest_slop, code_norm_share,
                            at<float>(upper), at<float>(lower), at<int32_t>(nearest)};
      }))
      // (keys, positions, largest upper bound, rows whose codes were read); centres as eight addresses and sizes.
      .def("absorb", [](const SketchedRows& rows, int64_t count, uintptr_t index, int n_centres, int first_number,
                        uintptr_t codes, uintptr_t step, uintptr_t norm, uintptr_t error, uintptr_t rest,
                        uintptr_t dot_error, uintptr_t apart, int64_t apart_stride, const Draw& draw, bool deferred,
                        int threads) {
        Shard shard{};
        shard.rows = count;
        shard.index = at<const int64_t>(index);
        SketchedPass pass{};
        pass.shard = &shard;
        pass.rows = rows;
        pass.centres = {n_centres, first_number, at<const int16_t>(codes), at<const float>(step), at<const float>(norm),
                        at<const float>(error), at<const float>(rest), at<const float>(dot_error), at<const float>(apart),
                        apart_stride};
        pass.draw = draw;
        pass.deferred = deferred;
        pass.threads = threads;
        {
          py::gil_scoped_release release;
          ALGES_DISPATCH(sketched_pass(pass));
        }
        py::list keys, positions;
        for (int64_t i = 0; i < pass.n_contenders; ++i) {
          keys.append(pass.contenders[i].key);
          positions.append(pass.contenders[i].position);
        }
        delete[] pass.contenders;
        return py::make_tuple(keys, positions, pass.largest, pass.read);
      });
}

}  // namespace alges
