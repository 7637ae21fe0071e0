//! A tiny network with its data, and a folder that goes away.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use timm_graph::reference::ReferenceEngine;
use timm_graph::{Builder, Conv2d, Engine, Init, NodeId, StateKind, StateSpec};
use timm_models::network::Network;
use timm_train::trainer::initial_store;
use timm_train::{Batch, Pixels, Targets, TrainConfig, Trainer};

pub const CLASSES: usize = 3;

/// Conv, a running mean, ReLU, dropout, pool, classifier.
pub fn network(b: &Builder, x: NodeId) -> NodeId {
    let conv = Conv2d { pad: [1; 4], ..Conv2d::default() };
    let channels = b.dim(x, 1);
    let weight = b.at("conv").param("weight", &[4, channels, 3, 3], Init::Uniform { bound: 0.3 });
    let x = b.conv2d(x, weight, conv);
    let mean_spec = StateSpec { shape: vec![4], kind: StateKind::Buffer, init: Init::Fill(0.0) };
    let count_spec = StateSpec { shape: vec![], kind: StateKind::Counter, init: Init::Fill(0.0) };
    let running = b.at("norm").state("running_mean", mean_spec);
    let count = b.at("norm").state("num_batches_tracked", count_spec);
    let x = if b.training() {
        let mean = b.channel_stats(b.detach(x)).0;
        let moved = b.add(b.mul_scalar(running, 0.9), b.mul_scalar(mean, 0.1));
        b.at("norm").update("running_mean", moved);
        b.at("norm").update("num_batches_tracked", b.add_scalar(count, 1.0));
        x
    } else {
        b.sub(x, b.mul_scalar(b.per_channel(running, 4), 0.01))
    };
    let mut x = b.relu(x);
    if b.training() {
        let keep = b.binary(timm_graph::scalar::Binary::Gt, b.uniform(&b.shape(x)), b.fill(0.1, &b.shape(x)));
        x = b.mul_scalar(b.mul(x, keep), 1.0 / 0.9);
    }
    let pooled = b.reshape(b.mean(x, &[2, 3]), &[b.dim(x, 0), 4]);
    let head = b.at("head");
    let weight = head.param("weight", &[CLASSES, 4], Init::Normal { std: 0.5 });
    b.add(b.matmul_t(pooled, weight), head.param("bias", &[CLASSES], Init::Fill(0.0)))
}

/// Batches of 4×4 grey images whose brightness and slant say their class.
pub fn batches(count: usize, size: usize) -> Vec<Batch> {
    let mut bits = 12345u64;
    let mut next = move || {
        bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (bits >> 33) as usize
    };
    (0..count)
        .map(|_| {
            let labels: Vec<usize> = (0..size).map(|_| next() % CLASSES).collect();
            let mut pixels = Vec::new();
            for &label in &labels {
                pixels.extend((0..16).map(|p| (60 * label + 10 * (p % 4) * label + next() % 40) as u8));
            }
            let labels = labels.iter().map(|&l| l as f32).collect();
            Batch { pixels: Pixels::U8(pixels), targets: Targets::Labels(labels), size: [size, 4, 4, 1] }
        })
        .collect()
}

pub fn trainer(config: TrainConfig) -> Trainer {
    trainer_of(Arc::new(network), config)
}

pub fn trainer_of(network: Arc<dyn Network>, config: TrainConfig) -> Trainer {
    trainer_on(Arc::new(ReferenceEngine), network, config)
}

pub fn trainer_on(engine: Arc<dyn Engine>, network: Arc<dyn Network>, config: TrainConfig) -> Trainer {
    let store = initial_store(&*network, [1, 4, 4], 1).expect("network");
    Trainer::new(network, store, engine, config).expect("config")
}

/// All numbers of a store by name, bit for bit.
pub fn bits(trainer: &Trainer) -> Vec<(String, Vec<u32>)> {
    let mut all: Vec<(String, Vec<u32>)> = trainer
        .store()
        .iter()
        .map(|(name, entry)| (name.to_string(), entry.tensor.data.iter().map(|v| v.to_bits()).collect()))
        .collect();
    all.sort();
    all
}

/// A folder of its own for each test, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("timm-train-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for tests");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
