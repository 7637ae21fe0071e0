//! Pooling: global pooling of heads, anti-aliased and padded local pooling.

use timm_graph::{Builder, Conv2d, NodeId, Pool, ReduceOp};

use super::{StageStride, pad_same, same_padding, symmetric_padding};

/// Global pooling of `[B, C, H, W]`, by timm's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalPool {
    /// `''`: none.
    None,
    Avg,
    Max,
    /// The mean of `avg` and `max`.
    AvgMax,
    /// `avg` and `max` side by side: twice the channels.
    CatAvgMax,
}

impl GlobalPool {
    /// What timm's name stands for; the `fast` variants compute the same.
    ///
    /// # Errors
    /// A message with the valid names.
    pub fn parse(name: &str) -> Result<Self, String> {
        let name = name.to_ascii_lowercase();
        Ok(match name.strip_prefix("fast").unwrap_or(&name) {
            "" if name.is_empty() => GlobalPool::None,
            "" | "avg" => GlobalPool::Avg,
            "max" => GlobalPool::Max,
            "avgmax" => GlobalPool::AvgMax,
            "catavgmax" => GlobalPool::CatAvgMax,
            _ => {
                return Err(format!(
                    "unknown global_pool '{name}'; it is one of avg, max, avgmax, catavgmax or '' for none"
                ));
            }
        })
    }

    /// Writes the pooled `x`, `[B, C]`; unchanged without pooling.
    pub fn write(self, b: &Builder, x: NodeId) -> NodeId {
        let mean = || b.mean(x, &[2, 3]);
        let max = || b.reduce(ReduceOp::Max, x, &[2, 3]);
        let pooled = match self {
            GlobalPool::None => return x,
            GlobalPool::Avg => mean(),
            GlobalPool::Max => max(),
            GlobalPool::AvgMax => b.mul_scalar(b.add(mean(), max()), 0.5),
            GlobalPool::CatAvgMax => b.concat(&[mean(), max()], 1),
        };
        b.flatten(pooled, 1)
    }
}

/// Pooling of tokens `[B, N, C]`, by timm's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPool {
    /// `''`: none.
    None,
    /// The first token, the class token.
    Token,
    Avg,
    AvgMax,
    Max,
    /// Attention pooling with a learned query.
    Map,
}

impl TokenPool {
    /// What timm's name stands for.
    ///
    /// # Errors
    /// A message with the valid names.
    pub fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "" => TokenPool::None,
            "token" => TokenPool::Token,
            "avg" => TokenPool::Avg,
            "avgmax" => TokenPool::AvgMax,
            "max" => TokenPool::Max,
            "map" => TokenPool::Map,
            _ => {
                return Err(format!(
                    "unknown global_pool '{name}'; it is one of token, avg, avgmax, max, map or '' for none"
                ));
            }
        })
    }

    /// Writes the pooled `x`, `[B, C]`, without the first `skip` tokens; unchanged without pooling. Attention pooling
    /// has weights and is the caller's.
    pub fn write(self, b: &Builder, x: NodeId, skip: usize) -> NodeId {
        let tokens = b.dim(x, 1);
        if skip > 0 && skip >= tokens {
            return b.fail(format!("{tokens} tokens, {skip} of them no patches: nothing to pool"));
        }
        let patches = || if skip == 0 { x } else { b.slice(x, 1, skip, tokens - skip) };
        let mean = || b.mean(patches(), &[1]);
        let max = || b.reduce(ReduceOp::Max, patches(), &[1]);
        let pooled = match self {
            TokenPool::None | TokenPool::Map => return x,
            TokenPool::Token => b.slice(x, 1, 0, 1),
            TokenPool::Avg => mean(),
            TokenPool::Max => max(),
            TokenPool::AvgMax => b.mul_scalar(b.add(mean(), max()), 0.5),
        };
        b.flatten(pooled, 1)
    }
}

/// What takes the place of a stride, so that shifting the image by a pixel changes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AntiAlias {
    /// A binomial filter of size 3 (<https://arxiv.org/abs/1904.11486>).
    Blur,
    /// The same with zeros around the map instead of its reflection.
    BlurZeros,
    /// The mean of stride × stride positions.
    Avg,
}

impl AntiAlias {
    /// Writes `x` subsampled by `stride`.
    pub fn write(self, b: &Builder, x: NodeId, stride: usize) -> NodeId {
        match self {
            AntiAlias::Blur => blur_pool(b, x, stride),
            AntiAlias::BlurZeros => blur(b, x, stride, symmetric_padding(3, stride, 1)),
            AntiAlias::Avg if stride == 1 => x,
            AntiAlias::Avg => b.avg_pool(x, Pool::new(stride, stride)),
        }
    }
}

/// Binomial 3 × 3 filter of each channel with reflected borders, every `stride`-th position.
pub fn blur_pool(b: &Builder, x: NodeId, stride: usize) -> NodeId {
    let pad = symmetric_padding(3, stride, 1);
    let mut padded = x;
    for (axis, size) in [2, 3].into_iter().zip(b.size(x)) {
        if size <= pad {
            return b.fail(format!("an axis of {size} is too small to be reflected by {pad}"));
        }
        let reflect = |i: usize| match i {
            i if i < pad => pad - i,
            i if i < pad + size => i - pad,
            i => 2 * (size - 1) - (i - pad),
        };
        padded = b.gather(padded, axis, (0..size + 2 * pad).map(|i| reflect(i) as u32).collect());
    }
    blur(b, padded, stride, 0)
}

/// The filter with `pad` zeros around the map.
fn blur(b: &Builder, x: NodeId, stride: usize, pad: usize) -> NodeId {
    let channels = b.dim(x, 1);
    let row = [0.25f32, 0.5, 0.25];
    let filter: Vec<f32> = row.iter().flat_map(|v| row.map(|h| v * h)).collect();
    let weight = b.constant(filter.repeat(channels), &[channels, 1, 3, 3]);
    b.conv2d(x, weight, Conv2d { stride: [stride; 2], pad: [pad; 4], groups: channels, ..Conv2d::default() })
}

/// Mean of 2 × 2 positions at every position, the far border padded with zeros that count.
fn avg_pool_same(b: &Builder, x: NodeId) -> NodeId {
    b.avg_pool(pad_same(b, x, 2, 1, 0.0), Pool::new(2, 1))
}

/// The pooling before the 1 × 1 convolution of a "d" shortcut: the mean of 2 × 2 positions, at every `stride`-th.
pub fn avg_pool_shortcut(b: &Builder, x: NodeId, place: StageStride) -> NodeId {
    match place {
        StageStride { stride: 1, dilation: 1, .. } => x,
        StageStride { dilation: 1, stride, .. } => {
            b.avg_pool(x, Pool { ceil: true, count_include_pad: false, ..Pool::new(2, stride) })
        }
        _ => avg_pool_same(b, x),
    }
}

/// Max pooling padded as TensorFlow's SAME.
pub fn max_pool_same(b: &Builder, x: NodeId, kernel: usize, stride: usize) -> NodeId {
    let [height, width] = b.size(x);
    let [top, bottom] = same_padding(height, kernel, stride, 1);
    let [left, right] = same_padding(width, kernel, stride, 1);
    b.max_pool(x, Pool { pad: [top, bottom, left, right], ..Pool::new(kernel, stride) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_names() {
        assert_eq!(GlobalPool::parse(""), Ok(GlobalPool::None));
        assert_eq!(GlobalPool::parse("fast"), Ok(GlobalPool::Avg));
        assert_eq!(GlobalPool::parse("fastcatavgmax"), Ok(GlobalPool::CatAvgMax));
        assert!(GlobalPool::parse("token").unwrap_err().contains("avgmax"));
    }
}
