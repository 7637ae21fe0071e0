//! Tables of text: values separated by commas or tabs, quoted as RFC 4180 says.

/// A table with a header.
pub(crate) struct Table<'a> {
    header: Vec<String>,
    rest: &'a str,
    separator: u8,
    /// Line the header ends in.
    line: usize,
}

impl<'a> Table<'a> {
    /// Reads the header of a table.
    ///
    /// # Errors
    /// For an empty table and for columns of the same name.
    pub(crate) fn parse(text: &'a str, separator: u8) -> Result<Table<'a>, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rows = Rows { rest: text, separator, line: 1, start: 1 };
        let header = rows.record().transpose()?.ok_or("it is empty; its first line must name the columns")?;
        let header: Vec<String> = header.into_iter().map(|name| name.trim().to_string()).collect();
        for (column, name) in header.iter().enumerate() {
            if header[..column].contains(name) {
                return Err(format!("two columns are named '{name}'"));
            }
        }
        Ok(Table { header, rest: rows.rest, separator, line: rows.line })
    }

    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// The rows, each with as many values as the header.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Result<Vec<String>, String>> + use<'a> {
        let columns = self.header.len();
        let (separator, line) = (self.separator, self.line);
        let mut rows = Rows { rest: self.rest, separator, line, start: line };
        std::iter::from_fn(move || {
            let record = rows.record()?;
            let line = rows.start;
            Some(record.and_then(|record| {
                if record.len() == columns {
                    Ok(record)
                } else {
                    let found = record.len();
                    Err(format!("line {line} has {found} values, the header {columns}; quote values that hold the separator"))
                }
            }))
        })
    }
}

struct Rows<'a> {
    rest: &'a str,
    separator: u8,
    /// Line that was read up to.
    line: usize,
    /// Line the last record began in.
    start: usize,
}

impl Rows<'_> {
    /// The next record that is no empty line.
    fn record(&mut self) -> Option<Result<Vec<String>, String>> {
        let bytes = self.rest.as_bytes();
        let mut at = 0;
        while matches!(bytes.get(at), Some(b'\n' | b'\r')) {
            self.line += usize::from(bytes[at] == b'\n');
            at += 1;
        }
        if at == bytes.len() {
            return None;
        }
        self.start = self.line;
        let mut record = Vec::new();
        loop {
            let value = if bytes.get(at) == Some(&b'"') {
                let mut value = String::new();
                let mut from = at + 1;
                loop {
                    let Some(length) = self.rest[from..].find('"') else {
                        self.rest = "";
                        return Some(Err(format!(
                            "a quote that opens in line {} does not close",
                            self.start
                        )));
                    };
                    value += &self.rest[from..from + length];
                    from += length + 1;
                    if bytes.get(from) != Some(&b'"') {
                        break;
                    }
                    value.push('"');
                    from += 1;
                }
                self.line += value.bytes().filter(|&byte| byte == b'\n').count();
                at = from;
                if !matches!(bytes.get(at), None | Some(b'\n' | b'\r'))
                    && bytes.get(at) != Some(&self.separator)
                {
                    self.rest = "";
                    return Some(Err(format!("line {}: text follows a quoted value", self.line)));
                }
                value
            } else {
                let end = |byte: &u8| *byte == self.separator || *byte == b'\n' || *byte == b'\r';
                let length = bytes[at..].iter().position(end).unwrap_or(bytes.len() - at);
                let value = self.rest[at..at + length].to_string();
                at += length;
                value
            };
            record.push(value);
            if bytes.get(at) != Some(&self.separator) {
                break;
            }
            at += 1;
        }
        self.rest = &self.rest[at..];
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_lines() {
        let text = "\u{feff}file, label\r\n\"a, \"\"b\"\".png\",x\r\n\r\nc.png,\"two\nlines\"\nd.png,";
        let table = Table::parse(text, b',').unwrap();
        assert_eq!(table.header(), ["file", "label"]);
        let rows: Vec<Vec<String>> = table.rows().map(Result::unwrap).collect();
        assert_eq!(rows, [["a, \"b\".png", "x"], ["c.png", "two\nlines"], ["d.png", ""]]);
        let error = |text: &str| {
            let table = match Table::parse(text, b'\t') {
                Ok(table) => table,
                Err(error) => return error,
            };
            table.rows().find_map(Result::err).unwrap_or_default()
        };
        assert!(error("a\tb\n1\t2\n1\n").contains("line 3 has 1 values, the header 2"));
        assert!(error("a\tb\n1\t\"x\n").contains("opens in line 2 does not close"));
        assert!(error("a\tb\n1\t\"x\"y\n").contains("text follows a quoted value"));
        assert!(error("a\ta\n").contains("two columns are named 'a'"));
        assert!(error("\n\n").contains("empty"));
    }
}
