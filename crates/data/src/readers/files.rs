//! Files that many threads read from, each at the place it wants.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::DataError;

/// Files that stay open at most: half of the usual limit of a process would be 512.
const OPEN_FILES: usize = 256;

/// A list of files, opened when first read and kept open, the ones used last.
#[derive(Debug)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    open: Mutex<Vec<(usize, Arc<File>)>>,
}

impl Files {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Files {
        Files { paths, open: Mutex::new(Vec::new()) }
    }

    pub(crate) fn path(&self, file: usize) -> &Path {
        self.paths.get(file).map_or(Path::new(""), PathBuf::as_path)
    }

    pub(crate) fn get(&self, file: usize) -> Result<Arc<File>, DataError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.iter().position(|(number, _)| *number == file) {
            // To the end, where the ones used last are.
            open[place..].rotate_left(1);
        } else {
            let path = self.path(file);
            let opened = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
            if open.len() >= OPEN_FILES {
                open.remove(0);
            }
            open.push((file, Arc::new(opened)));
        }
        Ok(open[open.len() - 1].1.clone())
    }

    /// `size` bytes from `start` on.
    pub(crate) fn read(&self, file: usize, start: u64, size: usize) -> Result<Vec<u8>, DataError> {
        let opened = self.get(file)?;
        let mut bytes = vec![0; size];
        read_exact_at(&opened, &mut bytes, start).map_err(|source| {
            let source = match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::new(source.kind(), "it became shorter since its index was made")
                }
                _ => source,
            };
            DataError::Io { path: self.path(file).into(), source }
        })?;
        Ok(bytes)
    }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, start)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, start)
}

/// Fills the buffer from `start` on.
pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut start: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match read_at(file, buffer, start) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                start += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
