use super::{Instr, Operand, Program};
use crate::bf16::{assert_rounded, rounded, to_pairs};
use crate::simd::{available, with_isa};
use timm_graph::random;
use timm_graph::scalar::{Binary, Unary};

/// A seeded stream of choices.
struct Choices(u64, u64);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        ((random::uniform(self.0, 0, 0, self.1) as f64 * n as f64) as usize).min(n - 1)
    }
    fn value(&mut self) -> f32 {
        self.1 += 1;
        random::uniform(self.0, 1, 0, self.1) * 4.0 - 2.0
    }
}

/// Every element one after the other, in f64: the twin.
fn naive(program: &Program, inputs: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let total: usize = program.dims.iter().product();
    let mut outputs = vec![vec![0f64; total]; program.outputs];
    for at in 0..total {
        let mut index = vec![0; program.dims.len()];
        let mut rest = at;
        for d in (0..index.len()).rev() {
            index[d] = rest % program.dims[d];
            rest /= program.dims[d];
        }
        let mut r = std::collections::HashMap::new();
        for instr in &program.instrs {
            match *instr {
                Instr::Load { dst, input } => {
                    let strides = &program.inputs[input as usize].strides;
                    let offset: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
                    r.insert(dst, inputs[input as usize][offset] as f64);
                }
                Instr::Const { dst, value } => {
                    r.insert(dst, value as f64);
                }
                Instr::Unary { op, dst, a } => {
                    r.insert(dst, op.eval(r[&a]));
                }
                Instr::Binary { op, dst, a, b } => {
                    r.insert(dst, op.eval(r[&a], r[&b]));
                }
                Instr::Select { dst, cond, a, b } => {
                    r.insert(dst, if r[&cond] != 0.0 { r[&a] } else { r[&b] });
                }
                Instr::Store { src, output } => outputs[output as usize][at] = r[&src],
            }
        }
    }
    outputs
}

fn close(got: f32, want: f64, what: &str) {
    let error = (got as f64 - want).abs();
    assert!(error <= 2e-5 * want.abs().max(1.0), "{what}: {got}, want {want}");
}

/// A random program of smooth operations over random dimensions, with every kind of broadcast.
fn random_program(seed: u64, keep_last: bool) -> (Program, Vec<Vec<f32>>) {
    let mut choose = Choices(seed, 0);
    let sizes = [1, 2, 3, 5, 7, 16, 17, 24, 33, 64, 100, 257, 700, 1025, 2100];
    let rank = 1 + choose.below(4);
    let mut dims: Vec<usize> = (0..rank).map(|_| sizes[choose.below(sizes.len())]).collect();
    while dims.iter().product::<usize>() > 60_000 {
        let largest = (0..rank).max_by_key(|&d| dims[d]).unwrap();
        dims[largest] = dims[largest] / 2 + 1;
    }
    let count = 1 + choose.below(4);
    let mut inputs = Vec::new();
    let mut data = Vec::new();
    for _ in 0..count {
        let mut order: Vec<usize> = (0..rank).collect();
        let kind = choose.below(6);
        if kind == 0 {
            // A permuted operand.
            for d in 0..rank {
                order.swap(d, choose.below(rank));
            }
        }
        let mut strides = vec![0; rank];
        let mut size = 1;
        for &d in order.iter().rev() {
            let broadcast = match kind {
                1 => d + 1 != rank,
                2 => d + 1 == rank,
                3 => true,
                4 => choose.below(2) == 0,
                _ => false,
            };
            if !broadcast {
                strides[d] = size;
                size *= dims[d];
            }
        }
        inputs.push(Operand { strides });
        data.push((0..size).map(|_| choose.value()).collect());
    }
    let mut instrs: Vec<Instr> = (0..count).map(|i| Instr::Load { dst: i as u16, input: i as u16 }).collect();
    instrs.push(Instr::Const { dst: count as u16, value: choose.value() });
    let mut registers = count as u16 + 1;
    let unary = [Unary::Relu, Unary::Tanh, Unary::Sigmoid, Unary::Neg, Unary::Abs, Unary::LeakyRelu(0.1)];
    let binary = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min];
    for _ in 0..choose.below(14) + 1 {
        let (a, b, c) = (
            choose.below(registers as usize) as u16,
            choose.below(registers as usize) as u16,
            choose.below(registers as usize) as u16,
        );
        // Sometimes an old register is written again.
        let dst = if choose.below(4) == 0 { a } else { registers };
        instrs.push(match choose.below(5) {
            0 | 1 => Instr::Unary { op: unary[choose.below(unary.len())], dst, a },
            2 | 3 => Instr::Binary { op: binary[choose.below(binary.len())], dst, a, b },
            _ => Instr::Select { dst, cond: c, a, b },
        });
        registers = registers.max(dst + 1);
        // Keep the numbers small.
        instrs.push(Instr::Unary { op: Unary::Tanh, dst, a: dst });
    }
    let outputs = 1 + choose.below(3);
    for output in 0..outputs {
        let src = choose.below(registers as usize) as u16;
        instrs.push(Instr::Store { src, output: output as u16 });
    }
    if keep_last && dims[rank - 1] > 600 {
        dims[rank - 1] = 600;
    }
    (Program { dims, inputs, outputs, instrs }, data)
}

#[test]
fn random_programs_equal_their_naive_twin() {
    for &isa in available() {
        with_isa(isa, || {
            for seed in 0..150 {
                let (program, data) = random_program(seed, false);
                let want = naive(&program, &data);
                let total: usize = program.dims.iter().product();
                // Unaligned on purpose.
                let shifted: Vec<Vec<f32>> = data.iter().map(|d| [&[9.0f32; 3][..], d].concat()).collect();
                let inputs: Vec<*const f32> = shifted.iter().map(|d| d[3..].as_ptr()).collect();
                let mut outputs = vec![vec![f32::NAN; total + 2]; program.outputs];
                let pointers: Vec<*mut f32> = outputs.iter_mut().map(|o| o[1..].as_mut_ptr()).collect();
                let what = format!("{isa:?} seed {seed} {program:?}");
                unsafe { program.compile().run(&inputs, &[], &pointers, &[]) };
                for (got, want) in outputs.iter().zip(&want) {
                    assert!(got[0].is_nan() && got[total + 1].is_nan(), "{what}: wrote outside");
                    for (&g, &w) in got[1..].iter().zip(want) {
                        close(g, w, &what);
                    }
                }
            }
        });
    }
}

#[test]
fn outputs_are_rounded_beside_the_numbers_or_in_their_place() {
    let mut checked = 0;
    for seed in 0..100 {
        let (program, data) = random_program(seed, false);
        let total: usize = program.dims.iter().product();
        if !total.is_multiple_of(2) {
            continue;
        }
        let (outputs, compiled) = (program.outputs, program.compile());
        let inputs: Vec<*const f32> = data.iter().map(|d| d.as_ptr()).collect();
        let mut numbers = vec![vec![0f32; total]; outputs];
        let mut pairs = vec![vec![0f32; total / 2]; outputs];
        for only in 0..outputs {
            // All outputs are rounded, one of them is stored in no other form.
            let mut pointers: Vec<*mut f32> = numbers.iter_mut().map(|o| o.as_mut_ptr()).collect();
            let rounded: Vec<_> = pairs.iter_mut().enumerate().map(|(i, p)| (i, p.as_mut_ptr())).collect();
            unsafe { compiled.run(&inputs, &[], &pointers, &[]) };
            pointers[only] = std::ptr::null_mut();
            unsafe { compiled.run(&inputs, &[], &pointers, &rounded) };
            for (pairs, numbers) in pairs.iter().zip(&numbers) {
                assert_rounded(pairs, numbers, &format!("seed {seed}"));
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "only {checked} cases");
}

#[test]
fn inputs_in_pairs_are_the_numbers_that_they_hold() {
    let mut checked = 0;
    for seed in 0..200 {
        for summing in [false, true] {
            let (program, mut data) = random_program(seed, summing);
            let total: usize = program.dims.iter().product();
            if !total.is_multiple_of(2) {
                continue;
            }
            let written = if summing { seed as usize % program.outputs } else { program.outputs };
            let channels = program.dims.last().map_or(1, |&c| c);
            let compiled = match summing {
                true => program.clone().compile_channel_sums(written),
                false => program.clone().compile(),
            };
            data.iter_mut().flatten().for_each(|x| *x = rounded(*x));
            let in_pairs = compiled.pair_inputs();
            let run = |data: &[Vec<f32>], pairs: &[usize], outputs: &mut [Vec<f32>]| {
                let inputs: Vec<*const f32> = data.iter().map(|d| d.as_ptr()).collect();
                let pointers: Vec<*mut f32> = outputs.iter_mut().map(|o| o.as_mut_ptr()).collect();
                let mut sums = vec![vec![f32::NAN; channels]; program.outputs - written];
                let mut slices: Vec<&mut [f32]> = sums.iter_mut().map(|s| s.as_mut_slice()).collect();
                match summing {
                    true => unsafe {
                        compiled.run_channel_sums(&inputs, pairs, &pointers, &[], &mut slices);
                    },
                    false => unsafe { compiled.run(&inputs, pairs, &pointers, &[]) },
                }
                sums
            };
            let (mut numbers, mut again) =
                (vec![vec![0f32; total]; written], vec![vec![0f32; total]; written]);
            let sums = run(&data, &[], &mut numbers);
            for &i in &in_pairs {
                let mut pairs = vec![0f32; total / 2];
                to_pairs(&data[i][..total], &mut pairs);
                data[i] = pairs;
                checked += 1;
            }
            let bits = |x: &[Vec<f32>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            let sums_again = run(&data, &in_pairs, &mut again);
            assert_eq!(bits(&numbers), bits(&again), "seed {seed} {program:?}");
            assert_eq!(bits(&sums), bits(&sums_again), "seed {seed} {program:?}");
        }
    }
    assert!(checked > 50, "only {checked} cases");
}

#[test]
fn in_place_runs_equal_runs_into_fresh_memory() {
    let mut checked = 0;
    for seed in 0..200 {
        let (program, data) = random_program(seed, false);
        let total: usize = program.dims.iter().product();
        let compiled = program.clone().compile();
        let mut fresh = vec![vec![0f32; total]; program.outputs];
        let inputs: Vec<*const f32> = data.iter().map(|d| d.as_ptr()).collect();
        let pointers: Vec<*mut f32> = fresh.iter_mut().map(|o| o.as_mut_ptr()).collect();
        unsafe { compiled.run(&inputs, &[], &pointers, &[]) };
        let mut dense_strides = vec![1; program.dims.len()];
        for d in (1..program.dims.len()).rev() {
            dense_strides[d - 1] = dense_strides[d] * program.dims[d];
        }
        for (i, input) in program.inputs.iter().enumerate() {
            if input.strides != dense_strides {
                continue;
            }
            for o in 0..program.outputs {
                let mut memory = data[i].clone();
                let mut inputs = inputs.clone();
                let mut pointers = pointers.clone();
                let shared = memory.as_mut_ptr();
                inputs[i] = shared.cast_const();
                pointers[o] = shared;
                unsafe { compiled.run(&inputs, &[], &pointers, &[]) };
                assert_eq!(memory, fresh[o], "seed {seed}: output {o} over input {i} of {program:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "only {checked} cases");
}

#[test]
fn channel_sums_equal_their_naive_twin() {
    for &isa in available() {
        with_isa(isa, || {
            for seed in 0..100 {
                let (program, data) = random_program(seed + 1000, true);
                let want = naive(&program, &data);
                let total: usize = program.dims.iter().product();
                let channels = *program.dims.last().unwrap();
                let written = (seed as usize) % program.outputs;
                let what = format!("{isa:?} seed {seed} {program:?}");
                let mut outputs = vec![vec![f32::NAN; total]; written];
                let mut sums = vec![vec![f32::NAN; channels]; program.outputs - written];
                let inputs: Vec<*const f32> = data.iter().map(|d| d.as_ptr()).collect();
                let pointers: Vec<*mut f32> = outputs.iter_mut().map(|o| o.as_mut_ptr()).collect();
                let mut slices: Vec<&mut [f32]> = sums.iter_mut().map(|s| s.as_mut_slice()).collect();
                // What is summed, as the plain plan computes it: the sums themselves must be tight.
                let mut terms = vec![vec![0f32; total]; program.outputs];
                let all: Vec<*mut f32> = terms.iter_mut().map(|o| o.as_mut_ptr()).collect();
                unsafe { program.clone().compile().run(&inputs, &[], &all, &[]) };
                let compiled = program.compile_channel_sums(written);
                unsafe { compiled.run_channel_sums(&inputs, &[], &pointers, &[], &mut slices) };
                for (got, want) in outputs.iter().zip(&want) {
                    for (&g, &w) in got.iter().zip(want) {
                        close(g, w, &what);
                    }
                }
                for (got, terms) in sums.iter().zip(&terms[written..]) {
                    for (c, &g) in got.iter().enumerate() {
                        let column = terms.iter().skip(c).step_by(channels).map(|&x| x as f64);
                        let (sum, size) = column.fold((0f64, 0f64), |(s, m), x| (s + x, m + x.abs()));
                        let error = (g as f64 - sum).abs();
                        assert!(error <= 2e-6 * size, "{what}: sum {g}, want {sum}");
                    }
                }
            }
        });
    }
}

#[test]
fn empty_spaces_and_single_numbers() {
    let program = |dims: Vec<usize>| Program {
        inputs: vec![Operand { strides: vec![1; dims.len()] }],
        dims,
        outputs: 1,
        instrs: vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Unary { op: Unary::Square, dst: 1, a: 0 },
            Instr::Store { src: 1, output: 0 },
        ],
    };
    let x = [3.0f32];
    let mut y = [0.0f32];
    unsafe { program(vec![]).compile().run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) };
    assert_eq!(y, [9.0]);
    unsafe { program(vec![0]).compile().run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) };
    unsafe { program(vec![4, 0]).compile().run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) };
    let mut sums = [1.0f32; 3];
    let empty = Program { inputs: vec![Operand { strides: vec![3, 1] }], ..program(vec![0, 3]) };
    let empty = empty.compile_channel_sums(0);
    unsafe { empty.run_channel_sums(&[x.as_ptr()], &[], &[], &[], &mut [&mut sums]) };
    assert_eq!(sums, [0.0; 3]);
}

/// (input 0 `first` input 1) `second` input 2, the difference and the product the other way round too, is one pass over a
/// tile, and what two passes give bit for bit.
#[test]
fn sums_differences_and_products_are_chained() {
    let arithmetic = [Binary::Add, Binary::Sub, Binary::Mul];
    let len = 1031;
    let mut choose = Choices(11, 0);
    let inputs: Vec<Vec<f32>> = (0..3).map(|_| (0..len).map(|_| choose.value()).collect()).collect();
    let pointers: Vec<*const f32> = inputs.iter().map(|input| input.as_ptr()).collect();
    for first in arithmetic {
        for second in arithmetic {
            for turned in [false, true] {
                let (a, b) = if turned { (2, 3) } else { (3, 2) };
                let mut instrs: Vec<Instr> = (0..3).map(|i| Instr::Load { dst: i, input: i }).collect();
                instrs.push(Instr::Binary { op: first, dst: 3, a: 0, b: 1 });
                instrs.push(Instr::Binary { op: second, dst: 4, a, b });
                instrs.push(Instr::Store { src: 4, output: 0 });
                let inputs_lie = vec![Operand { strides: vec![1] }; 3];
                let plan = Program { dims: vec![len], inputs: inputs_lie, outputs: 1, instrs }.compile();
                assert_eq!(plan.steps.len(), 1, "{first:?}, {second:?}");
                for isa in available() {
                    let mut out = vec![f32::NAN; len];
                    // SAFETY: all are as long as the output space.
                    with_isa(*isa, || unsafe { plan.run(&pointers, &[], &[out.as_mut_ptr()], &[]) });
                    for (i, got) in out.iter().enumerate() {
                        let one = |op: Binary, a: f32, b: f32| match op {
                            Binary::Add => a + b,
                            Binary::Sub => a - b,
                            _ => a * b,
                        };
                        let (x, c) = (one(first, inputs[0][i], inputs[1][i]), inputs[2][i]);
                        let want = if turned { one(second, c, x) } else { one(second, x, c) };
                        assert_eq!(got.to_bits(), want.to_bits(), "{first:?}, {second:?}, {isa:?}: [{i}]");
                    }
                }
            }
        }
    }
}
