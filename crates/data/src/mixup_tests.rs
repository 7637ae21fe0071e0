use super::*;
use crate::transforms::recorded::{self, Distributions};

const SIZE: (usize, usize) = (5, 6);
const SHARES: [f32; 4] = [0.3, 1.0, 0.625, 0.123];
const CUT: [bool; 4] = [false, true, true, false];

/// What the tool gave timm in the place of random numbers.
fn draws(mode: &str) -> Vec<Draw> {
    let box_of = |top: usize, bottom: usize, left: usize, right: usize| {
        let region = Region { x: left, y: top, width: right - left, height: bottom - top };
        (Action::Paste(region), (1.0 - (region.width * region.height) as f64 / 30.0) as f32)
    };
    let mut boxes = [box_of(1, 4, 2, 5), box_of(0, 2, 0, 6)].into_iter();
    let mut one = |index: usize| match (SHARES[index], CUT[index]) {
        (1.0, _) => (Action::Keep, 1.0),
        (_, true) => boxes.next().unwrap(),
        (share, false) => (Action::Blend(share, 1.0 - share), share),
    };
    let keep = (Action::Keep, 1.0);
    match mode {
        "batch" => vec![(Action::Blend(0.3, 0.7), 0.3); 4],
        "batch_cut" => vec![box_of(1, 4, 2, 5); 4],
        "elem" => (0..4).map(one).collect(),
        "pair" => vec![one(0), one(1), keep, one(0)],
        "half" => vec![one(0), one(1), keep, keep],
        _ => panic!("{mode}"),
    }
}

#[test]
fn mixes_as_timm_does_while_collating() {
    let lines = recorded::table("mixup.tsv");
    assert_eq!(lines.len(), 10);
    for fields in lines {
        let mode = fields[0].split('_').next().unwrap();
        let mixup = Mixup::new(MixupConfig {
            mixup: 1.0,
            mixup_mode: mode.parse().unwrap(),
            smoothing: fields[1].parse().unwrap(),
            num_classes: 3,
            ..MixupConfig::default()
        })
        .unwrap();
        let mut images = recorded::bytes(&fields[2]);
        let rows = mixup.encode(MixLabels::Classes(&[2, 0, 1, 2])).unwrap();
        let targets = mixup.mix(&mut images, SIZE.0 * SIZE.1 * 3, SIZE.1, &rows, &draws(&fields[0]));
        assert_eq!(images, recorded::bytes(&fields[3]), "{}", fields[0]);
        let expected = recorded::numbers(&fields[4]);
        assert_eq!(targets.len(), expected.len());
        for (ours, expected) in targets.iter().zip(expected) {
            assert!((f64::from(*ours) - expected).abs() < 1e-6, "{}: {targets:?}", fields[0]);
        }
    }
}

#[test]
fn draws_as_timm_does() {
    let mut distributions = Distributions::load();
    let mixup = |config: MixupConfig| Mixup::new(config).unwrap();
    let base = MixupConfig::default();
    let configs = [
        ("mixup", MixupConfig { mixup: 0.8, ..base.clone() }),
        ("small", MixupConfig { mixup: 0.1, ..base.clone() }),
        (
            "both",
            MixupConfig { mixup: 0.2, cutmix: 1.0, mixup_prob: 0.7, mixup_switch_prob: 0.3, ..base.clone() },
        ),
    ];
    let kind = |draw: &Draw| match draw.0 {
        Action::Keep => 0.0,
        Action::Blend(..) => 1.0,
        Action::Paste(_) => 2.0,
    };
    for (name, config) in configs {
        // Modes other than batch draw each image's numbers in the same way.
        for mode in [MixMode::Batch, MixMode::Elem, MixMode::Pair, MixMode::Half] {
            let mixup = mixup(MixupConfig { mixup_mode: mode, ..config.clone() });
            let mut rng = Rng::new(5);
            let draws: Vec<Draw> =
                (0..20_000).map(|_| mixup.draw(2, (48, 64), 0, &mut rng).unwrap()[0]).collect();
            let shares = draws.iter().filter(|draw| kind(draw) < 2.0).map(|draw| f64::from(draw.1));
            distributions.assert_alike(&format!("mix/{name}/share"), &shares.collect::<Vec<f64>>());
            let kinds: Vec<f64> = draws.iter().map(kind).collect();
            // A share of 1 is no mixing to us and to timm, but f64 rounds to it less often than f32.
            if name != "small" {
                distributions.assert_alike(&format!("mix/{name}/kind"), &kinds);
            }
        }
    }
    let cutmix = MixupConfig { cutmix: 1.0, ..base.clone() };
    for (name, config) in
        [("cutmix", cutmix), ("minmax", MixupConfig { cutmix_minmax: Some((0.2, 0.8)), ..base.clone() })]
    {
        let mixup = mixup(config);
        let mut rng = Rng::new(6);
        let mut columns = vec![Vec::new(); 5];
        for _ in 0..20_000 {
            let (Action::Paste(region), share) = mixup.draw_one((48, 64), &mut rng).unwrap() else {
                panic!()
            };
            let (bottom, right) = (region.y + region.height, region.x + region.width);
            assert!(bottom <= 48 && right <= 64);
            for (column, value) in columns.iter_mut().zip([region.y, bottom, region.x, right]) {
                column.push(value as f64);
            }
            columns[4].push(f64::from(share));
        }
        for (part, column) in ["top", "bottom", "left", "right", "share"].iter().zip(&columns) {
            distributions.assert_alike(&format!("{name}/{part}"), column);
        }
    }
}

#[test]
fn targets_follow_labels_and_epochs() {
    let config = MixupConfig {
        cutmix: 1.0,
        mixup: 0.5,
        mixup_off_epoch: 3,
        num_classes: 4,
        smoothing: 0.2,
        ..MixupConfig::default()
    };
    let mixup = Mixup::new(config.clone()).unwrap();
    let images: Vec<u8> = (0..2 * 12).collect();
    let mut copy = images.clone();
    let labels = MixLabels::Classes(&[1, 3]);
    // Switched off: smoothed labels only.
    let targets = mixup.apply(&mut copy, (2, 2), labels, 3, &mut Rng::new(1)).unwrap();
    assert_eq!(copy, images);
    assert_eq!(targets, [0.05, 0.85, 0.05, 0.05, 0.05, 0.05, 0.05, 0.85]);
    let dense = MixLabels::Dense(&[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let targets = mixup.apply(&mut copy, (2, 2), dense, 3, &mut Rng::new(1)).unwrap();
    for (target, expected) in targets.iter().zip([0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9]) {
        assert!((target - expected).abs() < 1e-6, "{targets:?}");
    }
    for seed in 0..50 {
        let mut copy = images.clone();
        let targets = mixup.apply(&mut copy, (2, 2), labels, 0, &mut Rng::new(seed)).unwrap();
        for row in targets.chunks(4) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{targets:?}");
        }
    }
    let half = Mixup::new(MixupConfig { mixup_mode: MixMode::Half, ..config.clone() }).unwrap();
    let mut copy = images.clone();
    assert_eq!(half.apply(&mut copy, (2, 2), labels, 0, &mut Rng::new(1)).unwrap().len(), 4);
    assert_eq!((copy.len(), half.outputs(2)), (12, 1));

    let refused =
        |labels, mut images: Vec<u8>| mixup.apply(&mut images, (2, 2), labels, 0, &mut Rng::new(1)).is_err();
    assert!(refused(MixLabels::Classes(&[1]), vec![0; 12]));
    assert!(refused(MixLabels::Classes(&[1, 4]), vec![0; 24]));
    assert!(refused(labels, vec![0; 23]));
    assert!(refused(MixLabels::Dense(&[0.0; 7]), vec![0; 12]));
    for wrong in [
        MixupConfig { mixup: -1.0, ..config.clone() },
        MixupConfig { mixup: 0.0, cutmix: 0.0, ..config.clone() },
        MixupConfig { cutmix_minmax: Some((0.8, 0.2)), ..config.clone() },
        MixupConfig { mixup_prob: 1.5, ..config.clone() },
        MixupConfig { smoothing: f64::NAN, ..config.clone() },
        MixupConfig { num_classes: 0, ..config },
    ] {
        assert!(Mixup::new(wrong).is_err());
    }
    assert!("half".parse::<MixMode>().is_ok() && "quarter".parse::<MixMode>().is_err());
}
