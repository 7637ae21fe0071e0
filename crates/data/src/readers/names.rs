//! Many names in one block of memory.

/// Names between two known starts.
const BLOCK: usize = 64;

/// A list of byte strings in one allocation: each takes its bytes, two more for its length, and an eighth
/// of a byte for finding it.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    lengths: Vec<u16>,
    /// Where every 64th name starts.
    starts: Vec<u64>,
}

impl Names {
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Adds a name; whether it was short enough.
    #[must_use]
    pub(crate) fn push(&mut self, name: &[u8]) -> bool {
        let Ok(length) = u16::try_from(name.len()) else { return false };
        if self.lengths.len().is_multiple_of(BLOCK) {
            self.starts.push(self.bytes.len() as u64);
        }
        self.lengths.push(length);
        self.bytes.extend_from_slice(name);
        true
    }

    /// The name at `index`; empty beyond the end.
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let (Some(&start), Some(&length)) = (self.starts.get(index / BLOCK), self.lengths.get(index)) else {
            return &[];
        };
        let before: u64 =
            self.lengths[index / BLOCK * BLOCK..index].iter().map(|&length| u64::from(length)).sum();
        let start = (start + before) as usize;
        &self.bytes[start..start + usize::from(length)]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.lengths.iter().map(move |&length| {
            let name = &self.bytes[start..start + usize::from(length)];
            start += usize::from(length);
            name
        })
    }

    /// Room for `names` more names of `bytes` bytes together.
    pub(crate) fn reserve(&mut self, names: usize, bytes: usize) {
        self.lengths.reserve_exact(names);
        self.starts.reserve_exact(names.div_ceil(BLOCK));
        self.bytes.reserve_exact(bytes);
    }

    pub(crate) fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The parts, for writing to a file.
    pub(crate) fn parts(&self) -> (&[u8], &[u16]) {
        (&self.bytes, &self.lengths)
    }

    /// From parts that were read from a file; `None` when they do not fit together.
    pub(crate) fn from_parts(bytes: Vec<u8>, lengths: Vec<u16>) -> Option<Names> {
        let mut starts = Vec::with_capacity(lengths.len().div_ceil(BLOCK));
        let mut start = 0u64;
        for (index, &length) in lengths.iter().enumerate() {
            if index.is_multiple_of(BLOCK) {
                starts.push(start);
            }
            start += u64::from(length);
        }
        (start == bytes.len() as u64).then_some(Names { bytes, lengths, starts })
    }

    /// Bytes of memory in use.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.capacity() + self.lengths.capacity() * 2 + self.starts.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let mut names = Names::default();
        let all: Vec<Vec<u8>> = (0..1000u32).map(|i| vec![i as u8; (i * 7 % 90) as usize]).collect();
        assert!(all.iter().all(|name| names.push(name)));
        assert_eq!(names.len(), 1000);
        assert!(all.iter().enumerate().all(|(index, name)| names.get(index) == name));
        assert!(names.iter().eq(all.iter().map(|name| &name[..])));
        assert_eq!(names.get(1000), b"");
        assert!(!names.push(&vec![0; 65_536]));
        let (bytes, lengths) = names.parts();
        assert_eq!(Names::from_parts(bytes.to_vec(), lengths.to_vec()).as_ref(), Some(&names));
        assert_eq!(Names::from_parts(bytes[1..].to_vec(), lengths.to_vec()), None);
    }
}
