//! A parquet file's footer: its columns, where their pages are, and its key-value metadata.
//!
//! <https://github.com/apache/parquet-format>

use std::fs::File;

use super::thrift::{Field, Reader, Trouble};
use crate::readers::files::read_exact_at;

const MAGIC: &[u8; 4] = b"PAR1";

/// Longest footer that is read.
const MAX_FOOTER: u64 = 1 << 30;

/// A column that holds values, with the names on the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub path: Vec<String>,
    /// Its number among the columns that hold values.
    pub column: usize,
    pub kind: Kind,
    /// Definition level of a value that is there.
    pub max_definition: u8,
    /// How many lists it lies in.
    pub max_repetition: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub codec: i64,
    pub values: u64,
    /// Where its pages start, the dictionary's first.
    pub start: u64,
    pub length: u64,
}

#[derive(Debug)]
pub(super) struct RowGroup {
    pub rows: u64,
    pub chunks: Vec<Chunk>,
}

#[derive(Debug)]
pub(super) struct Footer {
    pub leaves: Vec<Leaf>,
    pub groups: Vec<RowGroup>,
    /// The value of the key `huggingface`.
    pub huggingface: Option<String>,
}

#[derive(Default)]
struct Element {
    name: String,
    kind: Option<i64>,
    repetition: i64,
    children: i64,
}

impl Footer {
    pub(super) fn read(file: &File) -> Result<Footer, String> {
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let read = |start: u64, size: usize| {
            let mut bytes = vec![0; size];
            read_exact_at(file, &mut bytes, start).map_err(|error| error.to_string()).map(|()| bytes)
        };
        if length < 12 {
            return Err(format!("it has {length} bytes: it is no parquet file"));
        }
        let (head, tail) = (read(0, 4)?, read(length - 8, 8)?);
        if &tail[4..] != MAGIC {
            return Err(match &head[..] == MAGIC {
                true => "its end is missing: it is cut short; download it again".into(),
                false if &tail[4..] == b"PARE" => "it is encrypted, which is not read".into(),
                false => "it is no parquet file".to_string(),
            });
        }
        let size = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        if size > length - 12 || size > MAX_FOOTER {
            return Err(format!("it states a footer of {size} bytes in a file of {length}: it is damaged"));
        }
        let footer = Footer::parse(&read(length - 8 - size, size as usize)?)
            .map_err(|_| "its footer is damaged; download it again".to_string())?;
        let rows: u64 = footer.groups.iter().fold(0, |sum, group| sum.saturating_add(group.rows));
        // A row has an image, which no compression makes smaller than a bit.
        if rows / 8 > length {
            return Err(format!("it states {rows} rows in {length} bytes: it is damaged"));
        }
        for chunk in footer.groups.iter().flat_map(|group| &group.chunks) {
            if chunk.start.checked_add(chunk.length).is_none_or(|end| end > length) {
                return Err("a column lies beyond its end: it is damaged or cut short".into());
            }
            if chunk.values / 64 > length {
                return Err(format!("a column states {} values in a file of {length} bytes", chunk.values));
            }
        }
        Ok(footer)
    }

    fn parse(bytes: &[u8]) -> Result<Footer, Trouble> {
        let mut reader = Reader::new(bytes);
        let (mut schema, mut groups, mut huggingface) = (Vec::new(), Vec::new(), None);
        reader.fields(|reader, field| {
            match field.id {
                2 => schema = reader.list(field, element)?,
                4 => groups = reader.list(field, row_group)?,
                5 => {
                    for (key, value) in reader.list(field, key_value)? {
                        if key == "huggingface" {
                            huggingface = Some(value);
                        }
                    }
                }
                _ => reader.skip(field)?,
            }
            Ok(())
        })?;
        let leaves = leaves(&schema)?;
        if groups.iter().any(|group| group.chunks.len() != leaves.len()) {
            return Err(Trouble::Broken);
        }
        Ok(Footer { leaves, groups, huggingface })
    }
}

fn element(reader: &mut Reader, field: Field) -> Result<Element, Trouble> {
    let mut element = Element::default();
    reader.strukt(field, |reader, field| {
        match field.id {
            1 => element.kind = Some(reader.int(field)?),
            3 => element.repetition = reader.int(field)?,
            4 => element.name = reader.text(field)?,
            5 => element.children = reader.int(field)?,
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    Ok(element)
}

fn row_group(reader: &mut Reader, field: Field) -> Result<RowGroup, Trouble> {
    let (mut rows, mut chunks) = (0, Vec::new());
    reader.strukt(field, |reader, field| {
        match field.id {
            1 => chunks = reader.list(field, chunk)?,
            3 => rows = positive(reader.int(field)?)?,
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    Ok(RowGroup { rows, chunks })
}

fn chunk(reader: &mut Reader, field: Field) -> Result<Chunk, Trouble> {
    let mut chunk = None;
    reader.strukt(field, |reader, field| {
        match field.id {
            // Columns in other files were never written by anyone.
            1 => return Err(Trouble::Broken),
            3 => chunk = Some(chunk_meta(reader, field)?),
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    chunk.ok_or(Trouble::Broken)
}

fn chunk_meta(reader: &mut Reader, field: Field) -> Result<Chunk, Trouble> {
    let (mut codec, mut values, mut length, mut data, mut dictionary) = (0, 0, 0, 0, None);
    reader.strukt(field, |reader, field| {
        match field.id {
            4 => codec = reader.int(field)?,
            5 => values = positive(reader.int(field)?)?,
            7 => length = positive(reader.int(field)?)?,
            9 => data = positive(reader.int(field)?)?,
            11 => dictionary = Some(positive(reader.int(field)?)?).filter(|&start| start > 0),
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    let start = dictionary.map_or(data, |dictionary| dictionary.min(data));
    Ok(Chunk { codec, values, start, length })
}

fn key_value(reader: &mut Reader, field: Field) -> Result<(String, String), Trouble> {
    let (mut key, mut value) = (String::new(), String::new());
    reader.strukt(field, |reader, field| {
        match field.id {
            1 => key = reader.text(field)?,
            2 => value = reader.text(field)?,
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    Ok((key, value))
}

fn positive(number: i64) -> Result<u64, Trouble> {
    u64::try_from(number).map_err(|_| Trouble::Broken)
}

/// The schema is a tree, written depth first: an element is followed by its children.
fn leaves(schema: &[Element]) -> Result<Vec<Leaf>, Trouble> {
    let root = schema.first().ok_or(Trouble::Broken)?;
    let mut leaves = Vec::new();
    // Children still to come, and the levels, of the elements that are open.
    let mut open: Vec<(i64, String, u8, u8)> = vec![(root.children, String::new(), 0, 0)];
    for element in &schema[1..] {
        while open.last().is_some_and(|(left, ..)| *left == 0) {
            open.pop();
        }
        let Some((left, _, definition, repetition)) = open.last_mut() else { return Err(Trouble::Broken) };
        *left -= 1;
        let definition = definition.checked_add(u8::from(element.repetition != 0)).ok_or(Trouble::Broken)?;
        let repetition = repetition.checked_add(u8::from(element.repetition == 2)).ok_or(Trouble::Broken)?;
        if element.children > 0 {
            if open.len() > 32 {
                return Err(Trouble::Broken);
            }
            open.push((element.children, element.name.clone(), definition, repetition));
            continue;
        }
        let path = open[1..].iter().map(|(_, name, ..)| name.clone()).chain([element.name.clone()]).collect();
        let kind = match element.kind {
            Some(0) => Kind::Bool,
            Some(1) => Kind::Int32,
            Some(2) => Kind::Int64,
            Some(4) => Kind::Float,
            Some(5) => Kind::Double,
            Some(6) => Kind::Bytes,
            _ => Kind::Other,
        };
        let column = leaves.len();
        leaves.push(Leaf { path, column, kind, max_definition: definition, max_repetition: repetition });
    }
    Ok(leaves)
}
