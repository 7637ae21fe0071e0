//! A whole column of labels.

use std::fs::File;

use super::meta::{Footer, Leaf};
use super::page::{PageHeader, PageKind, Values, read_page};
use crate::readers::class_map::MAX_CLASSES;
use crate::readers::target::Targets;
use crate::readers::{ClassMap, Target, TargetFormat};

/// Names that lists have on the way to their elements.
const WRAPPERS: [&str; 6] = ["list", "element", "item", "bag", "array", "array_element"];

/// The labels of a file, a row each; `None` where there is none.
#[derive(Debug)]
pub(super) enum Labels {
    One(Vec<Option<i64>>),
    Texts(Vec<Option<String>>),
    Several(Vec<Vec<i64>>),
    SeveralTexts(Vec<Vec<String>>),
    Values(Vec<Vec<f32>>),
}

/// The column a key names: its path with `/` between the names, without those of lists.
pub(super) fn find<'a>(leaves: &'a [Leaf], key: &str) -> Option<&'a Leaf> {
    let wanted: Vec<&str> = key.split('/').collect();
    let plain =
        |leaf: &&Leaf| leaf.path.iter().map(String::as_str).eq([key]) || leaf.path.iter().eq(wanted.iter());
    let in_lists = |leaf: &&Leaf| {
        let names = leaf.path.iter().filter(|name| !WRAPPERS.contains(&name.as_str()));
        leaf.max_repetition > 0 && names.eq(wanted.iter())
    };
    leaves.iter().find(plain).or_else(|| leaves.iter().find(in_lists))
}

/// Calls `take` with each page of a column, in the order of the file, and the values it has.
fn pages(
    file: &File,
    footer: &Footer,
    leaf: &Leaf,
    mut take: impl FnMut(Vec<u8>, Vec<u8>, Values, usize) -> Result<(), String>,
) -> Result<(), String> {
    for group in &footer.groups {
        let chunk = &group.chunks[leaf.column];
        let (mut at, end) = (chunk.start, chunk.start + chunk.length);
        let (mut dictionary, mut seen) = (None, 0u64);
        while seen < chunk.values {
            let header = PageHeader::read(file, at, end)?;
            at = header.end();
            if header.kind == PageKind::Other {
                continue;
            }
            if header.kind == PageKind::Dictionary {
                dictionary = Some(read_page(file, &header, chunk, leaf, None)?.values);
                continue;
            }
            seen += header.values as u64;
            if header.values == 0 || seen > chunk.values {
                return Err(format!("the column '{}' has other values than it states", leaf.path.join(".")));
            }
            let page = read_page(file, &header, chunk, leaf, dictionary.as_ref())?;
            take(page.repetition, page.definition, page.values, header.values)?;
        }
    }
    Ok(())
}

/// Texts of a column without lists, a row each.
pub(super) fn texts(
    file: &File,
    footer: &Footer,
    leaf: &Leaf,
    mut take: impl FnMut(Option<&[u8]>),
) -> Result<(), String> {
    pages(file, footer, leaf, |_, definition, values, count| {
        let Values::Bytes(strings) = values else { return Err("the column holds no text".into()) };
        let mut next = 0;
        for row in 0..count {
            if definition.is_empty() || definition[row] == leaf.max_definition {
                take(strings.get(next));
                next += 1;
            } else {
                take(None);
            }
        }
        Ok(())
    })
}

/// The labels in a column.
pub(super) fn labels(
    file: &File,
    footer: &Footer,
    leaf: &Leaf,
    format: TargetFormat,
) -> Result<Labels, String> {
    let name = leaf.path.join(".");
    if leaf.max_repetition > 1 {
        return Err(format!("the column '{name}' holds lists of lists, which are no labels"));
    }
    let rows: u64 = footer.groups.iter().map(|group| group.rows).sum();
    let in_lists = leaf.max_repetition == 1;
    let (mut ints, mut floats, mut words): (Vec<Option<i64>>, Vec<f64>, Vec<Option<String>>) =
        Default::default();
    // Where each list ends among the values.
    let (mut ends, mut count): (Vec<usize>, usize) = Default::default();
    let mut has_text = false;
    pages(file, footer, leaf, |repetition, definition, values, entries| {
        let there = |entry: usize| definition.is_empty() || definition[entry] == leaf.max_definition;
        let mut next = 0;
        for entry in 0..entries {
            if in_lists && repetition[entry] == 0 {
                ends.push(count);
            }
            if !there(entry) {
                if !in_lists {
                    ints.push(None);
                    words.push(None);
                }
                continue;
            }
            count += 1;
            match &values {
                Values::Ints(all) => ints.push(Some(all[next])),
                Values::Floats(all) => {
                    ints.push((all[next].fract() == 0.0).then_some(all[next] as i64));
                    floats.push(all[next]);
                }
                Values::Bytes(all) => {
                    has_text = true;
                    words.push(all.get(next).map(|text| String::from_utf8_lossy(text).into_owned()));
                }
            }
            next += 1;
        }
        Ok(())
    })?;
    if !in_lists {
        let found = if has_text { words.len() } else { ints.len() };
        if found as u64 != rows {
            return Err(format!("the column '{name}' has {found} rows, the file {rows}"));
        }
        return Ok(if has_text { Labels::Texts(words) } else { Labels::One(ints) });
    }
    ends.push(count);
    if ends.len() as u64 != rows + 1 || ends[0] != 0 {
        return Err(format!("the column '{name}' has {} rows, the file {rows}", ends.len() - 1));
    }
    let lists = ends.windows(2).map(|pair| pair[0]..pair[1]);
    if has_text {
        return Ok(Labels::SeveralTexts(
            lists.map(|list| words[list].iter().flatten().cloned().collect()).collect(),
        ));
    }
    if format == TargetFormat::MultiHot {
        let value = |i: usize| {
            floats.get(i).copied().or(ints[i].map(|value| value as f64)).unwrap_or(f64::NAN) as f32
        };
        return Ok(Labels::Values(lists.map(|list| list.map(value).collect()).collect()));
    }
    let all: Option<Vec<i64>> = ints.into_iter().collect();
    let all = all.ok_or_else(|| {
        format!("the column '{name}' holds no class numbers; --target-format multihot reads values")
    })?;
    Ok(Labels::Several(lists.map(|list| all[list].to_vec()).collect()))
}

/// Several columns that are each on or off, as lists of the ones that are on.
pub(super) fn on_columns(columns: Vec<Labels>, fields: &[String]) -> Result<Labels, String> {
    let mut rows: Vec<Vec<i64>> = Vec::new();
    for (label, (column, field)) in columns.into_iter().zip(fields).enumerate() {
        let Labels::One(values) = column else {
            return Err(format!("the column '{field}' holds no numbers that say on or off"));
        };
        rows.resize(values.len(), Vec::new());
        for (row, value) in rows.iter_mut().zip(values) {
            match value {
                Some(value) if value > 0 => row.push(label as i64),
                Some(_) => {}
                None => return Err(format!("the column '{field}' has rows without a value")),
            }
        }
    }
    Ok(Labels::Several(rows))
}

/// Words to numbers, by their place among the classes; the others as they are.
pub(super) fn numbered(labels: Labels, classes: &ClassMap) -> Labels {
    let number = |name: &String| classes.label(name).map(i64::from);
    match labels {
        Labels::Texts(all) => Labels::One(all.iter().map(|name| name.as_ref().and_then(number)).collect()),
        Labels::SeveralTexts(all) => {
            Labels::Several(all.iter().map(|list| list.iter().filter_map(number).collect()).collect())
        }
        other => other,
    }
}

/// The targets of a file's rows, and which rows have none: a missing label, or -1, as in test splits.
pub(super) fn targets(labels: Labels) -> Result<(Targets, Vec<bool>), String> {
    let label = |number: i64| {
        let label = u32::try_from(number).ok().filter(|&label| (label as usize) < MAX_CLASSES);
        label.ok_or_else(|| format!("a row has the class {number}"))
    };
    let mut targets = Targets::default();
    let mut kept = Vec::new();
    match labels {
        Labels::One(all) => {
            for number in all {
                let known = number.filter(|&number| number >= 0);
                kept.push(known.is_some());
                if let Some(number) = known {
                    targets.push(Target::Class(label(number)?))?;
                }
            }
        }
        Labels::Several(all) => {
            for list in all {
                targets.push(Target::Indices(list.into_iter().map(label).collect::<Result<_, _>>()?))?;
                kept.push(true);
            }
        }
        Labels::Values(all) => {
            for row in all {
                targets.push(Target::MultiHot(row))?;
                kept.push(true);
            }
        }
        Labels::Texts(_) | Labels::SeveralTexts(_) => return Err("words where numbers are wanted".into()),
    }
    Ok((targets, kept))
}
