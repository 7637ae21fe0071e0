use super::mix::blending_shares;
use super::*;
use crate::transforms::recorded::{self, Distributions};

const SURROUNDINGS: Surroundings = Surroundings {
    translate_const: 100.0,
    translate_pct: 0.45,
    fill: [124, 116, 104],
    interpolation: Interpolation::Random,
};
const WIDTH: usize = 224;
const HEIGHT: usize = 160;

/// The number that timm's function of the same name takes.
fn argument(kind: Kind, operation: Operation) -> Option<f64> {
    match operation {
        Operation::AutoContrast | Operation::Equalize | Operation::Invert => None,
        Operation::Solarize(value) | Operation::SolarizeAdd(value) | Operation::Posterize(value) => {
            Some(f64::from(value))
        }
        // timm hands over how much colour is taken away.
        Operation::Color(value) if kind == Kind::Desaturate => Some(1.0 - value),
        Operation::Color(value)
        | Operation::Contrast(value)
        | Operation::Brightness(value)
        | Operation::Sharpness(value)
        | Operation::GaussianBlur(value)
        | Operation::Rotate(value) => Some(value),
        Operation::Affine([_, b, c, d, _, f]) => Some(match kind {
            Kind::ShearX => b,
            Kind::ShearY => d,
            Kind::TranslateX => c,
            Kind::TranslateY => f,
            Kind::TranslateXRel => c / WIDTH as f64,
            _ => f / HEIGHT as f64,
        }),
    }
}

#[test]
fn levels_mean_what_they_mean_to_timm() {
    let mut rng = Rng::new(1);
    let mut compared = 0;
    for fields in recorded::table("levels.tsv") {
        let (_, kind) = *Kind::ALL.iter().find(|(name, _)| *name == fields[0]).unwrap();
        let level: f64 = fields[1].parse().unwrap();
        let expected: Vec<f64> = fields[2..].iter().filter_map(|field| field.parse().ok()).collect();
        let mut seen = [false; 2];
        for _ in 0..40 {
            let ours = argument(kind, kind.operation(level, &SURROUNDINGS, WIDTH, HEIGHT, &mut rng));
            if kind == Kind::GaussianBlurRand {
                assert!(ours.unwrap() <= (2.0 * expected[0]).max(0.1));
                seen = [true; 2];
                continue;
            }
            let alike = |sign: usize| match (ours, expected.get(sign)) {
                (Some(ours), Some(expected)) => (ours - expected).abs() < 1e-12,
                (None, None) => true,
                _ => false,
            };
            assert!(alike(0) || alike(1), "{fields:?}: {ours:?}");
            seen = [seen[0] || alike(0), seen[1] || alike(1)];
        }
        assert_eq!(seen, [true; 2], "{fields:?}: one sign never comes");
        compared += 1;
    }
    assert_eq!(compared, 270);
}

#[test]
fn policies_draw_as_often_and_as_much_as_timms() {
    let mut distributions = Distributions::load();
    let texts = [
        "rand-m9-mstd0.5-inc1",
        "rand-m7-n3-p0.8-mstd101",
        "rand-m15-mmax20-mstd2-tweights",
        "rand-m5-t3aw-n4",
        "rand-m6-t3a",
        "v0",
        "v0r-mstd0.5",
        "original",
        "originalr",
        "3a",
    ];
    for text in texts {
        let mut rng = Rng::new(20);
        let scheme = parse(text).unwrap();
        let (mut operations, mut counts) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let steps = scheme.choose(&mut rng);
            let before = operations.len();
            for step in steps {
                if let Some((operation, _)) = step.draw(&SURROUNDINGS, WIDTH, HEIGHT, &mut rng) {
                    operations.push((step.kind, argument(step.kind, operation).unwrap_or(0.0)));
                }
            }
            counts.push((operations.len() - before) as f64);
        }
        let index = |kind| Kind::ALL.iter().position(|(_, other)| *other == kind).unwrap() as f64;
        let indices: Vec<f64> = operations.iter().map(|&(kind, _)| index(kind)).collect();
        distributions.assert_alike(&format!("{text}/operation"), &indices);
        distributions.assert_alike(&format!("{text}/count"), &counts);
        for (name, kind) in Kind::ALL {
            let of_kind = operations.iter().filter(|(other, _)| other == kind);
            let values: Vec<f64> = of_kind.map(|&(_, value)| value).collect();
            if distributions.has(&format!("{text}/{name}")) && values.len() >= 1000 {
                distributions.assert_alike(&format!("{text}/{name}"), &values);
            }
        }
    }
    assert!(distributions.compared >= 35, "only {}", distributions.compared);
}

#[test]
fn mixtures_have_timms_weights() {
    let mut distributions = Distributions::load();
    for alpha in ["1.0", "0.3"] {
        let Scheme::Mix(mix) = parse(&format!("augmix-a{alpha}")).unwrap() else { panic!() };
        let mut rng = Rng::new(3);
        let draws: Vec<(Vec<f32>, f32)> = (0..20_000).map(|_| mix.draw(&mut rng)).collect();
        let first: Vec<f64> = draws.iter().map(|(weights, _)| f64::from(weights[0])).collect();
        let largest = draws.iter().map(|(weights, _)| f64::from(weights.iter().copied().fold(0.0, f32::max)));
        let share: Vec<f64> = draws.iter().map(|&(_, share)| f64::from(share)).collect();
        distributions.assert_alike(&format!("augmix/{alpha}/weight"), &first);
        distributions.assert_alike(&format!("augmix/{alpha}/largest"), &largest.collect::<Vec<f64>>());
        distributions.assert_alike(&format!("augmix/{alpha}/share"), &share);
    }
}

#[test]
fn mixtures_give_timms_pixels() {
    let image = recorded::image("scene.png");
    let expected = recorded::image("augmix.png").data;
    let chains = [Operation::Solarize(100), Operation::Invert, Operation::Posterize(2)].map(|operation| {
        let mut copy = image.clone();
        let mut canvas = Canvas {
            pixels: &mut copy.data,
            width: image.width,
            height: image.height,
            scratch: &mut Vec::new(),
        };
        operation.apply(&mut canvas, Outside { fill: [0; 3], interpolation: Interpolation::Bilinear });
        copy.data
    });
    let chains: Vec<&[u8]> = chains.iter().map(Vec::as_slice).collect();
    for (blended, expected) in [false, true].into_iter().zip(expected.chunks_exact(image.data.len())) {
        let mut pixels = image.data.clone();
        let mut mixture = mix::Mixture::new(&pixels, &[0.2, 0.5, 0.3], 0.6, blended);
        chains.iter().for_each(|chain| mixture.add(&mut pixels, chain));
        mixture.finish(&mut pixels);
        let worst = pixels.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert_eq!(worst, 0, "blended: {blended}");
    }
    // The blended form gives chain i the weight weights[i] * share in all.
    let shares = blending_shares(&[0.2, 0.5, 0.3], 0.6);
    let mut left = 1.0;
    for (share, weight) in shares.iter().zip([0.2, 0.5, 0.3]).rev() {
        assert!((share * left - weight * 0.6).abs() < 1e-6);
        left *= 1.0 - share;
    }
}

#[test]
fn grammar() {
    let magnitude = |text: &str| match parse(text).unwrap() {
        Scheme::Rand { steps, layers, weights } => {
            (steps[0].magnitude, layers, steps[0].probability, steps.len(), weights)
        }
        other => panic!("{other:?}"),
    };
    let plain = Magnitude { level: 10.0, std: 0.0, max: 10.0 };
    assert_eq!(magnitude("rand"), (plain, 2, 0.5, 15, None));
    let m9 = Magnitude { level: 9.0, std: 0.5, max: 10.0 };
    assert_eq!(magnitude("rand-m9-mstd0.5-inc1"), (m9, 2, 0.5, 15, None));
    // The first mstd and mmax count, the last of the others; mmax0 is none, and mstd above 100 is uniform.
    let (found, layers, probability, _, _) = magnitude("rand-m3-m4-mstd101-mstd1-mmax0-n1-p0.25-n7");
    assert_eq!(
        (found, layers, probability),
        (Magnitude { level: 4.0, std: f64::INFINITY, max: 10.0 }, 7, 0.25)
    );
    assert_eq!(magnitude("rand-tweights").4.unwrap().len(), 15);
    let Scheme::Auto(policies) = parse("v0r").unwrap() else { panic!() };
    assert!(policies.len() == 25 && policies.iter().flatten().all(|step| step.kind != Kind::Posterize));
    let Scheme::Mix(mix) = parse("augmix-m5-w4-d2-a0.5-b1").unwrap() else { panic!() };
    assert_eq!((mix.width, mix.depth, mix.alpha, mix.blended), (4, Some(2), 0.5, true));
    assert_eq!(mix.steps[0].magnitude, Magnitude { level: 5.0, std: f64::INFINITY, max: 10.0 });
    let Scheme::Mix(mix) = parse("augmix-d0-mstd0").unwrap() else { panic!() };
    assert_eq!((mix.depth, mix.steps[0].magnitude.std), (None, 0.0));
    for wrong in [
        "random",
        "randm9",
        "rand-m",
        "rand-mx9",
        "rand-m9.5",
        "rand-9",
        "rand-tall",
        "rand-pX",
        "rand--m9",
        "rand-m1000000",
        "rand-tweights-n16",
        "rand-t3aw-n15",
        "v1",
        "v0-m9",
        "original-mstd",
        "augmix-b",
        "augmix-d-1",
        "augmix-w0",
        "augmix-a0",
        "rand-mstd1e999",
        "trivial",
        "rand-w0",
    ] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("auto_augment"), "{error}");
    }
}
