//! The picture as SVG, without scripts, fonts or anything else from outside.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use super::layout::{LAYER_GAP, Layout, Line, Place, layout};
use super::modules::{Kind, Module, Modules};
use super::{Options, quantity};
use crate::flops;
use crate::graph::Graph;

const MARGIN: f64 = 32.0;
const TITLE_SIZE: f64 = 14.0;
const DETAIL_SIZE: f64 = 11.5;
const LINE_HEIGHT: f64 = 17.0;
const SANS: &str = "Inter, Helvetica, Arial, 'DejaVu Sans', sans-serif";
const MONO: &str = "'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace";

/// The picture as an SVG document.
pub fn svg(graph: &Graph, options: &Options) -> String {
    let modules = Modules::of(graph, options);
    let sizes: Vec<(f64, f64)> = modules.boxes.iter().map(size).collect();
    let placed = layout(&modules, &sizes);
    let counts = flops::count(graph);
    let costs = format!(
        "{} parameters · {} MACs · {} activations",
        quantity(counts.params),
        quantity(counts.macs),
        quantity(counts.activations)
    );
    let kinds: BTreeSet<Kind> = modules.boxes.iter().map(|m| m.kind).collect();
    let legend: Vec<Kind> = kinds.into_iter().collect();
    let legend_width: f64 = legend.iter().map(|kind| legend_entry(*kind)).sum();
    // A line to the next column turns above the boxes.
    let turn = if placed.lines.iter().any(|line| line.wrapped) { LAYER_GAP / 2.0 } else { 0.0 };
    let top = MARGIN + turn + if options.title.is_empty() { 36.0 } else { 64.0 };
    let content = placed.width.max(text_width(&costs, DETAIL_SIZE)).max(text_width(&options.title, 22.0));
    // A narrow picture gets its legend below one another.
    let stacked = legend_width > content.max(560.0);
    let content = if stacked { content.max(220.0) } else { content.max(legend_width) };
    let legend_height = if stacked { 20.0 * legend.len() as f64 } else { 20.0 };
    let width = content + 2.0 * MARGIN;
    let height = top + placed.height + 34.0 + legend_height + MARGIN;
    let left = MARGIN + (content - placed.width) / 2.0;

    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="{SANS}">"#
    );
    out.push_str(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##);
    out.push('\n');
    let mut y = MARGIN;
    if !options.title.is_empty() {
        text(&mut out, (MARGIN, y + 18.0), 22.0, "#0f172a", "font-weight=\"600\"", &options.title);
        y += 28.0;
    }
    text(&mut out, (MARGIN, y + 12.0), DETAIL_SIZE, "#64748b", "", &costs);
    let _ = writeln!(out, r#"<g transform="translate({left:.1} {top:.1})">"#);
    for line in &placed.lines {
        draw_line(&mut out, line);
    }
    for (module, place) in modules.boxes.iter().zip(&placed.boxes) {
        draw_box(&mut out, module, place);
    }
    draw_labels(&mut out, &modules, &placed);
    out.push_str("</g>\n");
    draw_legend(&mut out, &legend, stacked, top + placed.height + 34.0);
    out.push_str("</svg>\n");
    out
}

/// About what a text takes in a sans-serif font.
fn text_width(text: &str, size: f64) -> f64 {
    let ems = text.chars().map(|c| match c {
        'i' | 'l' | 'j' | '.' | ',' | ' ' | '·' | 't' | 'f' => 0.34,
        'm' | 'w' | 'M' | 'W' | 'G' => 0.86,
        'A'..='Z' | '…' => 0.7,
        _ => 0.59,
    });
    ems.sum::<f64>() * size
}

fn badge(module: &Module) -> Option<String> {
    (module.repeats > 1).then(|| format!("×{}", module.repeats))
}

fn size(module: &Module) -> (f64, f64) {
    let details = module.details();
    let badge = badge(module).map_or(0.0, |text| text_width(&text, TITLE_SIZE) + 20.0);
    let title = text_width(&module.title, TITLE_SIZE) * 1.05 + badge;
    let widest = details.iter().map(|line| text_width(line, DETAIL_SIZE)).fold(title, f64::max);
    let smallest = if module.kind == Kind::End { 72.0 } else { 150.0 };
    ((widest + 32.0).max(smallest), 18.0 + LINE_HEIGHT * (1 + details.len()) as f64)
}

fn text(out: &mut String, at: (f64, f64), size: f64, colour: &str, more: &str, content: &str) {
    let (x, y) = at;
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" fill="{colour}" {more}>{content}</text>"#
    );
}

fn draw_box(out: &mut String, module: &Module, place: &Place) {
    let (fill, line) = module.kind.colours();
    let (left, top) = (place.x - place.width / 2.0, place.y - place.height / 2.0);
    let round = if module.kind == Kind::End { place.height / 2.0 } else { 9.0 };
    let card = |out: &mut String, shift: f64| {
        let _ = writeln!(
            out,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="{round:.1}" fill="{fill}" stroke="{line}" stroke-width="1.2"/>"#,
            left + shift,
            top + shift,
            place.width,
            place.height
        );
    };
    // Repeated modules look like a stack of cards.
    if module.repeats > 1 {
        card(out, 7.0);
        card(out, 3.5);
    }
    card(out, 0.0);
    let mut y = top + 9.0 + 13.0;
    let middle = r#"text-anchor="middle""#;
    match badge(module) {
        None => {
            let style = format!("{middle} font-weight=\"600\"");
            text(out, (place.x, y), TITLE_SIZE, "#0f172a", &style, &module.title);
        }
        Some(times) => {
            let wide = text_width(&times, TITLE_SIZE) + 10.0;
            let style = format!("{middle} font-weight=\"600\"");
            text(out, (place.x - wide / 2.0 - 3.0, y), TITLE_SIZE, "#0f172a", &style, &module.title);
            let x = left + place.width - wide - 8.0;
            let _ = writeln!(
                out,
                r#"<rect x="{x:.1}" y="{:.1}" width="{wide:.1}" height="18" rx="9" fill="{line}"/>"#,
                y - 14.5
            );
            text(out, (x + wide / 2.0, y - 1.0), 12.0, "#ffffff", &style, &times);
        }
    }
    for line in module.details() {
        y += LINE_HEIGHT;
        text(out, (place.x, y), DETAIL_SIZE, "#475569", middle, &line);
    }
}

const STROKE: &str = r##"fill="none" stroke="#94a3b8" stroke-width="1.6""##;

fn draw_line(out: &mut String, line: &Line) {
    let points = &line.points;
    let Some((&(x0, y0), &(x1, y1))) = points.first().zip(points.last()) else { return };
    let mut path = format!("M{x0:.1} {y0:.1}");
    let tip = y1 - 6.0;
    if line.wrapped {
        round_corners(&mut path, points);
    } else {
        for pair in points.windows(2) {
            let ((ax, ay), (bx, by)) = (pair[0], pair[1]);
            let by = if (bx, by) == (x1, y1) { tip } else { by };
            let bend = (by - ay) / 2.0;
            if (ax - bx).abs() < 0.5 {
                let _ = write!(path, "L{bx:.1} {by:.1}");
            } else {
                let _ = write!(path, "C{ax:.1} {:.1} {bx:.1} {:.1} {bx:.1} {by:.1}", ay + bend, by - bend);
            }
        }
    }
    let _ = writeln!(out, r#"<path d="{path}" {STROKE}/>"#);
    let _ = writeln!(out, r##"<path d="M{x1:.1} {y1:.1}l-4.5 -8h9z" fill="#94a3b8"/>"##);
}

/// Straight pieces with quarter circles in between; ends short of the last point for the arrow head.
fn round_corners(path: &mut String, points: &[(f64, f64)]) {
    for corner in points.windows(3) {
        let [a, b, c] = [corner[0], corner[1], corner[2]];
        let towards = |from: (f64, f64), to: (f64, f64)| {
            let (dx, dy) = (to.0 - from.0, to.1 - from.1);
            let length = dx.hypot(dy);
            let radius = 10f64.min(length / 2.0);
            if length == 0.0 { from } else { (from.0 + dx / length * radius, from.1 + dy / length * radius) }
        };
        let (start, end) = (towards(b, a), towards(b, c));
        let _ =
            write!(path, "L{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}", start.0, start.1, b.0, b.1, end.0, end.1);
    }
    if let Some((x, y)) = points.last() {
        let _ = write!(path, "L{x:.1} {:.1}", y - 6.0);
    }
}

/// Shapes on the lines. Lines that leave a box with the same shape share one label.
fn draw_labels(out: &mut String, modules: &Modules, placed: &Layout) {
    let mut seen = HashSet::new();
    for (link, line) in modules.links.iter().zip(&placed.lines) {
        if !seen.insert((link.from, &link.label)) || line.points.len() < 2 {
            continue;
        }
        let ((x0, y0), (x1, _)) = (line.points[0], line.points[1]);
        // Beside the place where the line crosses the gap.
        let (x, y) = if line.wrapped {
            (x0, y0 + LAYER_GAP / 4.0)
        } else {
            ((x0 + x1) / 2.0, y0 + LAYER_GAP / 2.0 - 3.0)
        };
        let font = format!("font-family=\"{MONO}\"");
        // A white outline under the text keeps it readable where it crosses a line.
        let outline = format!("{font} stroke=\"#ffffff\" stroke-width=\"4\" stroke-linejoin=\"round\"");
        text(out, (x + 8.0, y + 4.0), 11.0, "#ffffff", &outline, &link.label);
        text(out, (x + 8.0, y + 4.0), 11.0, "#334155", &font, &link.label);
    }
}

fn legend_entry(kind: Kind) -> f64 {
    text_width(kind.name(), DETAIL_SIZE) + 40.0
}

fn draw_legend(out: &mut String, kinds: &[Kind], stacked: bool, top: f64) {
    let (mut x, mut y) = (MARGIN, top);
    for &kind in kinds {
        let (fill, line) = kind.colours();
        let _ = writeln!(
            out,
            r#"<rect x="{x:.1}" y="{y:.1}" width="14" height="14" rx="4" fill="{fill}" stroke="{line}" stroke-width="1.2"/>"#
        );
        text(out, (x + 20.0, y + 11.0), DETAIL_SIZE, "#475569", "", kind.name());
        if stacked {
            y += 20.0;
        } else {
            x += legend_entry(kind);
        }
    }
}
