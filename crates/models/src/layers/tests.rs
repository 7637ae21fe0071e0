//! Layers against numbers recorded from timm, and random layers against their rates.

use timm_graph::reference::evaluate;
use timm_graph::{Builder, DType, NodeId};

use super::*;

/// Runs a layer on `x`; entry i of a parameter is cos(0.7 i + 1) / 2.
fn run(training: bool, shape: &[usize], x: Vec<f64>, write: impl Fn(&Builder, NodeId) -> NodeId) -> Vec<f64> {
    let b = Builder::new(training);
    let input = b.input("x", shape, DType::F32);
    b.output("y", write(&b, input));
    let graph = b.finish().unwrap_or_else(|error| panic!("{error}"));
    let state = |name: &str| {
        let count = graph.states.get(name)?.shape.iter().product::<usize>();
        Some((0..count).map(|i| (i as f64 * 0.7 + 1.0).cos() * 0.5).collect())
    };
    let values = evaluate(&graph, &state, &[("x", x)], 3, 0).unwrap_or_else(|error| panic!("{error}"));
    values.output("y").expect("an output").to_vec()
}

fn wave(count: usize) -> Vec<f64> {
    (0..count).map(|i| (i as f64 * 0.37).sin()).collect()
}

fn assert_near(found: impl IntoIterator<Item = f64>, expected: &[f64], label: &str) {
    let found: Vec<f64> = found.into_iter().collect();
    let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-7);
    assert!(near && found.len() == expected.len(), "{label}: {found:?}, timm has {expected:?}");
}

#[test]
fn rounds_as_timm() {
    // Values of timm.layers.helpers.make_divisible.
    for (value, limit, expected) in
        [(16.0, 0.9, 16), (20.0, 0.9, 24), (11.0, 0.9, 16), (11.0, 0.0, 8), (3.0, 0.0, 8), (18.0, 0.9, 24)]
    {
        assert_eq!(make_divisible(value, 8, limit), expected, "{value}");
    }
}

#[test]
fn activations_are_timms() {
    let x = vec![-3.5, -1.0, -0.25, 0.0, 0.4, 1.5, 4.0];
    for (name, expected) in ACTIVATIONS {
        let act = Act::parse(name).expect("a known name");
        assert_near(run(false, &[7], x.clone(), |b, x| act.write(b, x)), &expected, name);
    }
    // The learned slope, 0.27 here.
    let slope = 1f64.cos() * 0.5;
    assert_near(
        run(false, &[2], vec![-2.0, 3.0], |b, x| Act::PRelu.write(b, x)),
        &[-2.0 * slope, 3.0],
        "prelu",
    );
    // Scale and bias are 0.27 too.
    let star = run(false, &[2], vec![-2.0, 3.0], |b, x| Act::StarRelu.write(b, x));
    assert_near(star, &[slope, 10.0 * slope], "star_relu");
    let squared = run(false, &[2], vec![-2.0, 3.0], |b, x| Act::SquaredRelu.write(b, x));
    assert_near(squared, &[0.0, 9.0], "squared_relu");
    assert_eq!(Act::parse("Swish"), Some(Act::Silu));
    assert_eq!(Act::parse("swoosh"), None);
}

#[test]
fn attention_is_timms() {
    for (attn, expected) in [
        (Attn::SE, [0.0, -0.291579851, -0.137033342, -0.231891737, 0.284219412]),
        (Attn::EffectiveSqueezeExcite, [0.0, -0.270239903, -0.159049189, -0.261272086, 0.274589775]),
        (Attn::EfficientChannel, [0.0, -0.263280006, -0.174774555, -0.333627823, 0.218192134]),
        (Attn::CircularEfficientChannel, [0.0, -0.263280006, -0.174774555, -0.333627823, 0.21416441]),
    ] {
        let y = run(false, &[2, 8, 3, 3], wave(144), |b, x| attn.write(b, x, 8, WeightInit::FanIn));
        assert_near([0, 10, 50, 100, 143].map(|i| y[i]), &expected, &format!("{attn:?}"));
    }
}

#[test]
fn attention_of_maps_is_timms() {
    let attention = Attention2d { heads: 2, bias: true, init: WeightInit::FanIn };
    let y = run(false, &[1, 4, 2, 3], wave(24), |b, x| attention.write(b, x, 6));
    let expected = [0.581821739, 0.581853062, -0.457856526, 0.060954724, -0.915790631, -0.357583117];
    assert_near([0, 2, 6, 17, 23, 35].map(|i| y[i]), &expected, "multi-head attention");
}

#[test]
fn norms_and_blur_pooling_are_timms() {
    let at = |y: Vec<f64>| [0, 7, 31].map(|i| y[i]);
    let run = |write: &dyn Fn(&Builder, NodeId) -> NodeId| run(false, &[2, 8, 3, 3], wave(144), write);
    let group = run(&|b, x| Norm::Group { groups: 4, eps: 1e-5 }.write(b, x, 1.0));
    assert_near(at(group), &[0.270075342, 0.476195757, 0.157619035], "group norm");
    let layer = run(&|b, x| Norm::Layer2d { eps: 1e-6 }.write(b, x, 1.0));
    assert_near(at(layer), &[0.298717792, 0.559772951, 0.085839644], "layer norm");
    assert_near(at(run(&|b, x| blur_pool(b, x, 2))), &[0.563298741, -0.559081606, 0.323208821], "blur");
    assert_near(
        at(run(&|b, x| blur_pool(b, x, 1))),
        &[0.563298741, 0.73424825, -0.620811459],
        "blur, stride 1",
    );
}

#[test]
fn norms_without_bias_are_timms() {
    let run = |shape: &[usize], write: &dyn Fn(&Builder, NodeId) -> NodeId| {
        let y = run(false, shape, wave(144), write);
        [0, 7, 31].map(|i| y[i])
    };
    let maps = |norm: Norm| run(&[2, 8, 3, 3], &|b, x| norm.write_unbiased(b, x, 1.0));
    let eps = 1e-6;
    assert_near(maps(Norm::Rms2d { eps }), &[0.0, 0.338719594, 0.555534775], "RmsNorm2d");
    assert_near(maps(Norm::Simple2d { eps }), &[0.0, 0.323674809, 0.520526534], "SimpleNorm2d");
    let group = Norm::Group { groups: 1, eps };
    assert_near(maps(group), &[-0.010724373, 0.191277924, 0.653918309], "GroupNorm1NoBias");
    let layer = Norm::Layer2d { eps };
    assert_near(maps(layer), &[0.028566639, 0.289621798, 0.585407219], "LayerNorm2dNoBias");
    let last = Norm::Simple2d { eps }.channels_last();
    let simple = run(&[2, 8, 3, 3], &|b, x| last.write(b, x, 1.0));
    assert_near(simple, &[0.0, -0.109374236, 0.339466267], "SimpleNorm");
}

#[test]
fn global_response_norm_is_timms() {
    let run = |axis| {
        let y = run(false, &[2, 8, 3, 3], wave(144), |b, x| global_response_norm(b, x, axis));
        [0, 7, 31].map(|i| y[i])
    };
    assert_near(run(1), &[0.270151153, 0.932846246, -0.948606882], "channels first");
    assert_near(run(3), &[0.270151153, 0.425918016, -0.89676544], "channels last");
}

#[test]
fn global_response_norm_of_a_dead_channel_has_a_derivative() {
    let mut x = wave(144);
    for image in x.chunks_mut(72) {
        image[27..36].fill(0.0);
    }
    let shape = [2, 8, 3, 3];
    let derivative = |b: &Builder, x| {
        let weights = b.constant(wave(144).into_iter().map(|v| v as f32).collect(), &shape);
        let total = b.sum(b.mul(global_response_norm(b, x, 1), weights), &[0, 1, 2, 3]);
        timm_graph::grad::gradients(b, total, &[x]).expect("differentiable")[0]
    };
    let found = run(false, &shape, x, derivative);
    assert!(found.iter().all(|v| v.is_finite()));
    assert_near(
        [0, 7, 31, 50].map(|i| found[i]),
        &[0.0, 0.832377651, -0.889555219, -0.253899153],
        "derivative",
    );
}

#[test]
fn norms_with_activation_are_timms() {
    let run = |norm: NormAct, act| {
        let y = run(false, &[2, 8, 3, 3], wave(144), |b, x| norm.write_with(b, x, 1.0, act));
        [7, 31, 63].map(|i| y[i])
    };
    let (count, of) = (Groups::Count(4), Groups::Of(2));
    let (s0, s0a) =
        (|groups| NormAct::EvoS0 { groups, eps: 1e-5 }, |groups| NormAct::EvoS0a { groups, eps: 1e-3 });
    assert_near(run(s0(count), true), &[0.380494371, -0.108372493, 0.220065875], "S0");
    assert_near(run(s0(of), false), &[0.411722336, -0.055174632, 0.014640519], "S0 without activation");
    assert_near(run(s0a(of), true), &[0.380378779, -0.108776053, 0.220299492], "S0a");
    assert_near(run(s0a(of), false), &[0.476055629, 0.141804712, -0.16114604], "S0a without activation");
    let filter_response = NormAct::FilterResponseTlu { eps: 1e-5 };
    assert_near(run(filter_response, true), &[0.476279585, 0.139700754, 0.463739215], "filter response");
    assert_near(
        run(filter_response, false),
        &[0.476279585, 0.139700754, -0.157685027],
        "filter response, no threshold",
    );
}

#[test]
fn standardized_convolutions_are_timms() {
    let run = |conv: Conv| {
        let y = run(false, &[2, 8, 3, 3], wave(144), |b, x| conv.write(b, x));
        [7, 31, 63].map(|i| y[i])
    };
    let plain = |eps| Standardize { eps, scale: None };
    let conv = Conv::new(8, 3).groups(2).standardize(plain(1e-8));
    assert_near(run(conv), &[-1.079678504, 1.412915083, 0.603146646], "StdConv2d");
    let conv = Conv::new(8, 3).stride(2).padding(Padding::Same).standardize(plain(1e-6));
    assert_near(run(conv), &[-1.461897086, -1.29428357, -0.85868069], "StdConv2dSame");
    let scale = Some(WeightScale { gamma: 1.5, gain: 1.0 });
    let conv = Conv::new(8, 3).bias().standardize(Standardize { eps: 1e-5, scale });
    assert_near(run(conv), &[0.163512354, -0.714833774, 0.453640265], "ScaledStdConv2d");
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let fails = |write: &dyn Fn(&Builder, NodeId) -> NodeId| {
        let b = Builder::new(true);
        let x = b.input("x", &[1, 6, 1, 1], DType::F32);
        write(&b.at("layer"), x);
        b.finish().expect_err("does not fit").to_string()
    };
    assert!(fails(&|b, x| blur_pool(b, x, 2)).contains("too small to be reflected"));
    assert!(fails(&|b, x| Norm::GROUP.write(b, x, 1.0)).contains("6 channels in 32 groups"));
    assert!(fails(&|b, x| Norm::BATCH.write(b, x, 1.0)).contains("more than one value per channel"));
    assert!(fails(&|b, x| classifier(b, x, 10)).contains("choose a global_pool"));
}

#[test]
fn random_layers_keep_the_mean() {
    let shape = [64, 8, 16, 16];
    let count = shape.iter().product::<usize>();
    let run =
        |training, write: &dyn Fn(&Builder, NodeId) -> NodeId| run(training, &shape, vec![1.0; count], write);
    let kept = |y: &[f64]| y.iter().filter(|&&v| v != 0.0).count() as f64 / count as f64;
    let mean = |y: &[f64]| y.iter().sum::<f64>() / count as f64;

    let dropped = run(true, &|b, x| dropout(b, x, 0.25));
    assert!((kept(&dropped) - 0.75).abs() < 0.01 && (mean(&dropped) - 1.0).abs() < 0.01);

    let paths = run(true, &|b, x| drop_path(b, x, 0.5));
    let whole = paths.chunks(count / 64).all(|sample| sample.iter().all(|v| v == &sample[0]));
    assert!(whole && (0.25..0.75).contains(&kept(&paths)), "{}", kept(&paths));
    assert!(paths.iter().all(|&v| v == 0.0 || v == 2.0));

    for block in [3, 4] {
        let blocks = run(true, &|b, x| drop_block(b, x, 0.2, block, 1.0));
        // Blocks overlap and stick out, seeds are sown for the inner positions: near the rate, not at it.
        assert!((0.74..0.86).contains(&kept(&blocks)), "{block}: {}", kept(&blocks));
        assert!((mean(&blocks) - 1.0).abs() < 1e-4, "{block}: {}", mean(&blocks));
        let one_channel = &blocks[..256];
        assert!(blocks[..2048].chunks(256).all(|channel| channel == one_channel), "the same in all channels");
    }
    for identity in [dropout, drop_path] {
        assert!(run(false, &|b, x| identity(b, x, 0.5)).iter().all(|&v| v == 1.0), "not in training");
    }
}

const ACTIVATIONS: [(&str, [f64; 7]); 15] = [
    ("relu6", [0.0, 0.0, 0.0, 0.0, 0.4, 1.5, 4.0]),
    ("leaky_relu", [-0.035, -0.01, -0.0025, 0.0, 0.4, 1.5, 4.0]),
    ("elu", [-0.969802617, -0.632120559, -0.221199217, 0.0, 0.4, 1.5, 4.0]),
    ("celu", [-0.969802617, -0.632120559, -0.221199217, 0.0, 0.4, 1.5, 4.0]),
    ("selu", [-1.705009341, -1.111330738, -0.388890197, 0.0, 0.420280395, 1.576051481, 4.202803949]),
    ("silu", [-0.102592808, -0.268941421, -0.109455875, 0.0, 0.239475064, 1.226361714, 3.92805516]),
    ("mish", [-0.104095754, -0.303401461, -0.129926964, 0.0, 0.289030534, 1.403378266, 3.997412807]),
    ("gelu", [-0.000814202, -0.158655254, -0.100323419, 0.0, 0.262168697, 1.399789198, 3.999873315]),
    ("gelu_tanh", [-0.000616198, -0.158808009, -0.100324649, 0.0, 0.262161169, 1.399571577, 3.999929754]),
    ("quick_gelu", [-0.009033446, -0.154204234, -0.09880035, 0.0, 0.26556689, 1.391662198, 3.995585276]),
    ("sigmoid", [0.029312231, 0.268941421, 0.437823499, 0.5, 0.59868766, 0.817574476, 0.98201379]),
    ("tanh", [-0.998177898, -0.761594156, -0.244918662, 0.0, 0.379948962, 0.905148254, 0.9993293]),
    ("hard_sigmoid", [0.0, 0.333333333, 0.458333333, 0.5, 0.566666667, 0.75, 1.0]),
    ("hard_swish", [0.0, -0.333333333, -0.114583333, 0.0, 0.226666667, 1.125, 4.0]),
    ("hard_mish", [0.0, -0.5, -0.21875, 0.0, 0.4, 1.5, 4.0]),
];
