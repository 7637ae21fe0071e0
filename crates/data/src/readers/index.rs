//! The index of a folder or of tar files: where each image is and what its class is, in a few bytes each.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rayon::prelude::*;

use super::names::Names;
use super::natural::{natural_order, natural_order_bytes};
use super::{ClassMap, OpenOptions, list_some};
use crate::DataError;

/// The part of a prefix that is a path in the innermost archive. An archive inside an archive stands
/// before it, with a zero byte between them: `a.tar\0b/`.
pub(crate) fn inner_path(prefix: &[u8]) -> &[u8] {
    prefix.iter().rposition(|&byte| byte == 0).map_or(prefix, |zero| &prefix[zero + 1..])
}

/// Where the content of an archive's member lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Start in the file, in blocks of 512 bytes.
    pub block: u32,
    /// Length in bytes.
    pub size: u32,
}

/// Images that share a folder: what a scan finds.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// What stands before each name, with its last slash; empty at the root (see [`inner_path`]).
    pub prefix: Vec<u8>,
    /// Name of their class.
    pub class: String,
    /// Which archive they lie in.
    pub archive: u32,
    pub names: Names,
    /// One per name, or none outside archives.
    pub places: Vec<Place>,
}

/// What is left of a [`Group`] once its names stand in the index.
#[derive(Debug)]
struct Home {
    prefix: Box<[u8]>,
    label: u32,
    archive: u32,
}

/// All images in timm's order: the natural order of their paths.
///
/// Names stand in one block of memory without their folder; the folder is found by the run of images an
/// index lies in. An image takes its name and 2 bytes, in an archive 10.
#[derive(Debug)]
pub(crate) struct Index {
    homes: Vec<Home>,
    /// First image of each run, and the home of the run.
    runs: Vec<(u32, u32)>,
    names: Names,
    places: Vec<Place>,
}

/// An image of an index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub prefix: &'a [u8],
    pub name: &'a [u8],
    pub label: u32,
    pub archive: u32,
    pub place: Option<Place>,
}

/// What [`build`] makes of the groups.
pub(crate) struct Built {
    pub index: Index,
    pub class_names: Vec<String>,
    pub warnings: Vec<String>,
}

/// Gives the groups their labels and brings their images in order.
///
/// # Errors
/// Those of [`ClassMap::load`], and [`DataError::NoImages`] for more than 4 billion images.
pub(crate) fn build(root: &Path, mut groups: Vec<Group>, options: &OpenOptions) -> Result<Built, DataError> {
    let count: usize = groups.iter().map(|group| group.names.len()).sum();
    if count >= u32::MAX as usize {
        let hint = "it has more than 4 billion images".into();
        return Err(DataError::NoImages { place: root.display().to_string(), hint });
    }
    groups.retain(|group| group.names.len() > 0);
    let fixed = ClassMap::from_options(options, root)?;
    let found: BTreeSet<&str> = groups.iter().map(|group| group.class.as_str()).collect();
    let classes = fixed.unwrap_or_else(|| {
        let mut names: Vec<String> = found.iter().map(|name| name.to_string()).collect();
        names.sort_by(|a, b| natural_order(a, b));
        ClassMap::from_names(names)
    });
    let mut warnings = Vec::new();
    let mut unknown: Vec<String> =
        found.iter().filter(|name| classes.label(name).is_none()).map(|name| name.to_string()).collect();
    if !unknown.is_empty() {
        unknown.sort_by(|a, b| natural_order(a, b));
        let left_out: usize = groups
            .iter()
            .filter(|group| classes.label(&group.class).is_none())
            .map(|group| group.names.len())
            .sum();
        let names = list_some(&unknown);
        warnings.push(format!("{}: {left_out} images left out, of unknown classes {names}", root.display()));
    }
    drop(found);
    let mut labelled: Vec<(u32, Group)> = groups
        .into_iter()
        .filter_map(|group| classes.label(&group.class).map(|label| (label, group)))
        .collect();
    Ok(Built { index: Index::new(&mut labelled), class_names: classes.into_names(), warnings })
}

impl Index {
    fn new(groups: &mut [(u32, Group)]) -> Index {
        // Sorted groups of sorted names are nearly in order, which the last sort needs little time for.
        groups.par_sort_by(|(_, a), (_, b)| {
            natural_order_bytes(inner_path(&a.prefix), inner_path(&b.prefix))
                .then_with(|| (a.archive, &a.prefix).cmp(&(b.archive, &b.prefix)))
        });
        groups.par_iter_mut().for_each(|(_, group)| sort_names(group));
        let groups: &[(u32, Group)] = groups;
        let mut order: Vec<(u32, u32)> = Vec::new();
        order.reserve_exact(groups.iter().map(|(_, group)| group.names.len()).sum());
        for (number, (_, group)) in groups.iter().enumerate() {
            order.extend((0..group.names.len() as u32).map(|name| (number as u32, name)));
        }
        let compare = |a: &(u32, u32), b: &(u32, u32)| compare(groups, *a, *b);
        if !order.is_sorted_by(|a, b| compare(a, b) != Ordering::Greater) {
            order.par_sort_by(compare);
        }

        let mut names = Names::default();
        names.reserve(order.len(), groups.iter().map(|(_, group)| group.names.total_bytes()).sum());
        let (mut runs, mut places) = (Vec::new(), Vec::new());
        if groups.iter().any(|(_, group)| !group.places.is_empty()) {
            places.reserve_exact(order.len());
        }
        for (image, &(number, name)) in order.iter().enumerate() {
            if runs.last().is_none_or(|&(_, home)| home != number) {
                runs.push((image as u32, number));
            }
            let group = &groups[number as usize].1;
            // It came out of such a list, so it is short enough.
            let _ = names.push(group.names.get(name as usize));
            places.extend(group.places.get(name as usize));
        }
        runs.shrink_to_fit();
        let home = |(label, group): &(u32, Group)| Home {
            prefix: group.prefix.clone().into_boxed_slice(),
            label: *label,
            archive: group.archive,
        };
        Index { homes: groups.iter().map(home).collect(), runs, names, places }
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// An image of the index.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] beyond its end.
    pub(crate) fn entry(&self, index: usize) -> Result<Entry<'_>, DataError> {
        self.get(index).ok_or(DataError::OutOfRange { index, len: self.len() })
    }

    /// An image of the index; `None` beyond its end.
    pub(crate) fn get(&self, index: usize) -> Option<Entry<'_>> {
        if index >= self.len() {
            return None;
        }
        let run = self.runs.partition_point(|&(first, _)| first as usize <= index);
        let home = &self.homes[self.runs[run.checked_sub(1)?].1 as usize];
        Some(Entry {
            prefix: &home.prefix,
            name: self.names.get(index),
            label: home.label,
            archive: home.archive,
            place: self.places.get(index).copied(),
        })
    }

    /// Bytes of memory in use.
    pub(crate) fn memory(&self) -> usize {
        let homes: usize = self.homes.iter().map(|home| home.prefix.len() + size_of::<Home>()).sum();
        homes + self.runs.capacity() * 8 + self.names.memory() + self.places.capacity() * 8
    }
}

/// Sorts the names of one group, with their places.
fn sort_names(group: &mut Group) {
    let mut order: Vec<u32> = (0..group.names.len() as u32).collect();
    let compare =
        |a: &u32, b: &u32| natural_order_bytes(group.names.get(*a as usize), group.names.get(*b as usize));
    if order.is_sorted_by(|a, b| compare(a, b) != Ordering::Greater) {
        return;
    }
    order.sort_by(compare);
    let mut sorted = Names::default();
    sorted.reserve(order.len(), group.names.total_bytes());
    for &name in &order {
        let _ = sorted.push(group.names.get(name as usize));
    }
    if !group.places.is_empty() {
        group.places = order.iter().map(|&name| group.places[name as usize]).collect();
    }
    group.names = sorted;
}

/// Natural order of the whole paths; the archive, then the place in it decide between equal ones, which
/// are many where archives hold members of the same names.
fn compare(groups: &[(u32, Group)], a: (u32, u32), b: (u32, u32)) -> Ordering {
    let name = |(group, name): (u32, u32)| groups[group as usize].1.names.get(name as usize);
    if a.0 == b.0 {
        return natural_order_bytes(name(a), name(b)).then(a.1.cmp(&b.1));
    }
    let path = |of: (u32, u32)| [inner_path(&groups[of.0 as usize].1.prefix), name(of)].concat();
    // Groups of equal paths are in the order of their archives.
    natural_order_bytes(&path(a), &path(b)).then(a.cmp(&b))
}

/// Groups by prefix and archive while members arrive in any order.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    groups: Vec<Group>,
    by_prefix: HashMap<Vec<u8>, usize>,
    /// The group of the last member, which is mostly that of the next.
    last: usize,
}

impl Collector {
    /// Adds an image of one archive; whether its name was short enough. `class` is asked for new prefixes.
    pub(crate) fn add(
        &mut self,
        prefix: &[u8],
        name: &[u8],
        place: Place,
        class: impl FnOnce() -> String,
    ) -> bool {
        if self.groups.get(self.last).is_none_or(|group| group.prefix != prefix) {
            self.last = match self.by_prefix.get(prefix) {
                Some(&known) => known,
                None => {
                    self.by_prefix.insert(prefix.to_vec(), self.groups.len());
                    self.groups.push(Group { prefix: prefix.to_vec(), class: class(), ..Group::default() });
                    self.groups.len() - 1
                }
            };
        }
        let group = &mut self.groups[self.last];
        let added = group.names.push(name);
        if added {
            group.places.push(place);
        }
        added
    }

    pub(crate) fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(prefix: &str, class: &str, names: &[&str]) -> Group {
        let mut group = Group { prefix: prefix.into(), class: class.into(), ..Group::default() };
        assert!(names.iter().all(|name| group.names.push(name.as_bytes())));
        group
    }

    fn paths(index: &Index) -> Vec<String> {
        let path = |entry: Entry| String::from_utf8([entry.prefix, entry.name].concat()).unwrap();
        (0..index.len()).map(|image| path(index.get(image).unwrap())).collect()
    }

    #[test]
    fn folders_that_interleave() {
        let groups = vec![
            group("a/", "a", &["10.png", "9.png", "b-1.png"]),
            group("a/b/", "b", &["2.png", "1.png"]),
            group("A-x/", "A-x", &["1.png"]),
            group("", "", &["a/zz.png", "0.png"]),
        ];
        let built = build(Path::new("r"), groups, &OpenOptions::default()).unwrap();
        let expected =
            ["0.png", "A-x/1.png", "a/9.png", "a/10.png", "a/b-1.png", "a/b/1.png", "a/b/2.png", "a/zz.png"];
        assert_eq!(paths(&built.index), expected);
        assert_eq!(built.class_names, ["", "a", "A-x", "b"]);
        let labels: Vec<u32> = (0..8).map(|image| built.index.get(image).unwrap().label).collect();
        assert_eq!(labels, [0, 2, 1, 1, 1, 3, 3, 0]);
        assert!(built.index.get(8).is_none());
    }

    #[test]
    fn a_million_images_take_few_bytes_each() {
        let groups: Vec<Group> = (0..1000)
            .map(|class| {
                let synset = format!("n{:08}", class * 13_007);
                let mut group =
                    Group { prefix: format!("{synset}/").into(), class: synset.clone(), ..Group::default() };
                for image in 0..1000 {
                    assert!(group.names.push(format!("{synset}_{}.JPEG", image * 7 % 1000).as_bytes()));
                    group.places.push(Place { block: image, size: 100_000 });
                }
                group
            })
            .collect();
        let built = build(Path::new("r"), groups, &OpenOptions::default()).unwrap();
        assert_eq!(built.index.len(), 1_000_000);
        let bytes = built.index.memory() as f64 / 1e6;
        println!("{bytes:.1} bytes per image in archives, {:.1} in folders", bytes - 8.0);
        // Names of 18 bytes on average, 2 for the length, 8 for the place.
        assert!(bytes < 28.5, "{bytes} bytes per image");
        let entry = built.index.get(123_456).unwrap();
        assert_eq!((entry.label, entry.name), (123, &b"n01599861_456.JPEG"[..]));
    }
}
