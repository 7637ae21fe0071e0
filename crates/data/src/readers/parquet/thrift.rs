//! Thrift's compact protocol, as far as parquet's metadata needs it.
//!
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// Structs and lists in each other, at most.
const MAX_DEPTH: usize = 32;

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Why something could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The bytes end before the value does.
    Short,
    /// The bytes are no such value.
    Broken,
}

/// Reads values from a slice.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// The header of a field: its number and type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub id: i16,
    kind: u8,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0, depth: 0 }
    }

    /// Bytes that were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, Trouble> {
        let byte = *self.bytes.get(self.at).ok_or(Trouble::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Trouble> {
        let end = self.at.checked_add(count).ok_or(Trouble::Broken)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Trouble::Short)?;
        self.at = end;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, Trouble> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Trouble::Broken)
    }

    fn zigzag(&mut self) -> Result<i64, Trouble> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Calls `read` for each field of a struct; it must read the field's value or skip it.
    pub(super) fn fields(
        &mut self,
        mut read: impl FnMut(&mut Self, Field) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Trouble::Broken);
        }
        let mut last = 0i16;
        loop {
            let header = self.byte()?;
            if header == 0 {
                break;
            }
            let id = match header >> 4 {
                0 => i16::try_from(self.zigzag()?).map_err(|_| Trouble::Broken)?,
                step => last.checked_add(i16::from(step)).ok_or(Trouble::Broken)?,
            };
            last = id;
            read(self, Field { id, kind: header & 0x0F })?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// An integer of any width.
    pub(super) fn int(&mut self, field: Field) -> Result<i64, Trouble> {
        match field.kind {
            BYTE => Ok(i64::from(self.byte()? as i8)),
            4..=6 => self.zigzag(),
            _ => Err(Trouble::Broken),
        }
    }

    pub(super) fn bool(&mut self, field: Field) -> Result<bool, Trouble> {
        match field.kind {
            TRUE => Ok(true),
            FALSE => Ok(false),
            _ => Err(Trouble::Broken),
        }
    }

    pub(super) fn binary(&mut self, field: Field) -> Result<&'a [u8], Trouble> {
        if field.kind != BINARY {
            return Err(Trouble::Broken);
        }
        let length = usize::try_from(self.varint()?).map_err(|_| Trouble::Broken)?;
        self.take(length)
    }

    pub(super) fn text(&mut self, field: Field) -> Result<String, Trouble> {
        Ok(String::from_utf8_lossy(self.binary(field)?).into_owned())
    }

    /// A struct as the value of a field.
    pub(super) fn strukt(
        &mut self,
        field: Field,
        read: impl FnMut(&mut Self, Field) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        if field.kind != STRUCT {
            return Err(Trouble::Broken);
        }
        self.fields(read)
    }

    /// A list: `read` gets each element as if it were a field.
    pub(super) fn list<T>(
        &mut self,
        field: Field,
        mut read: impl FnMut(&mut Self, Field) -> Result<T, Trouble>,
    ) -> Result<Vec<T>, Trouble> {
        if field.kind != LIST && field.kind != SET {
            return Err(Trouble::Broken);
        }
        let (count, kind) = self.list_header()?;
        // What a damaged file states is no reason to ask for memory.
        let mut all = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            all.push(read(self, Field { id: 0, kind })?);
        }
        Ok(all)
    }

    fn list_header(&mut self) -> Result<(usize, u8), Trouble> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => usize::try_from(self.varint()?).map_err(|_| Trouble::Broken)?,
            count => usize::from(count),
        };
        Ok((count, header & 0x0F))
    }

    pub(super) fn skip(&mut self, field: Field) -> Result<(), Trouble> {
        self.skip_kind(field.kind, false)
    }

    fn skip_kind(&mut self, kind: u8, in_list: bool) -> Result<(), Trouble> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Trouble::Broken);
        }
        match kind {
            // In a list a truth value is a byte, in a field it is in the header.
            TRUE | FALSE if in_list => drop(self.byte()?),
            TRUE | FALSE => {}
            BYTE => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            DOUBLE => drop(self.take(8)?),
            BINARY => {
                let length = usize::try_from(self.varint()?).map_err(|_| Trouble::Broken)?;
                self.take(length)?;
            }
            LIST | SET => {
                let (count, kind) = self.list_header()?;
                for _ in 0..count {
                    self.skip_kind(kind, true)?;
                }
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                for _ in 0..count {
                    self.skip_kind(kinds >> 4, true)?;
                    self.skip_kind(kinds & 0x0F, true)?;
                }
            }
            STRUCT => self.fields(|reader, field| reader.skip(field))?,
            _ => return Err(Trouble::Broken),
        }
        self.depth -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_skips() {
        // 1: i32 -3; 2: true; 4: binary "ab"; 20: list of two i32; 21: struct { 1: double }.
        let bytes = [
            0x15, 0x05, 0x11, 0x28, 2, b'a', b'b', 0x09, 40, 0x25, 0x02, 0x04, 0x1C, 0x17, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0,
        ];
        let (mut seen, mut reader) = (Vec::new(), Reader::new(&bytes));
        reader
            .fields(|reader, field| {
                match field.id {
                    1 => assert_eq!(reader.int(field)?, -3),
                    2 => assert!(reader.bool(field)?),
                    4 => assert_eq!(reader.text(field)?, "ab"),
                    20 => assert_eq!(reader.list(field, |reader, item| reader.int(item))?, [1, 2]),
                    _ => reader.skip(field)?,
                }
                seen.push(field.id);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [1, 2, 4, 20, 21]);
        assert_eq!(reader.position(), bytes.len());
        for end in 0..bytes.len() {
            let mut reader = Reader::new(&bytes[..end]);
            assert_eq!(reader.fields(|reader, field| reader.skip(field)), Err(Trouble::Short), "{end}");
        }
        let mut deep = Reader::new(&[0x1C; 1000]);
        assert_eq!(deep.fields(|reader, field| reader.skip(field)), Err(Trouble::Broken));
    }
}
