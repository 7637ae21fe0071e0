//! The picture of `--plot-lr`: the learning rate of every update of a planned run, as SVG.

use std::fmt::Write;

use timm_train::Schedule;

const SIZE: [f64; 2] = [960.0, 540.0];
/// The corners of the plot within the picture.
const LEFT: f64 = 92.0;
const RIGHT: f64 = 936.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 480.0;
/// More lines than this are named in the legend by the first, the last, and some between.
const NAMED: usize = 8;
/// Deep blue for the full rate, to green for the smallest share.
const COLOURS: [[f64; 3]; 2] = [[37.0, 74.0, 178.0], [72.0, 186.0, 130.0]];

/// Draws `schedule`, one line for each of the layers' `shares` of the rate.
pub fn draw(title: &str, schedule: &Schedule, updates_per_epoch: usize, shares: &[f32]) -> String {
    let mut shares = shares.to_vec();
    shares.sort_by(|a, b| b.total_cmp(a));
    shares.dedup();
    let epochs = schedule.total_epochs().max(1) as f64;
    let points = points(schedule, updates_per_epoch);
    let largest = shares.first().map_or(1.0, |&share| f64::from(share));
    let peak = points.iter().map(|p| p.1).fold(0.0, f64::max) * largest;
    let (x_step, y_step) = (step(epochs, 12.0), step(if peak > 0.0 { peak } else { 1.0 }, 7.0));
    let top = ((peak / y_step - 1e-9).ceil().max(1.0)) * y_step;
    let x = |epoch: f64| LEFT + epoch / epochs * (RIGHT - LEFT);
    let y = |lr: f64| BOTTOM - lr / top * (BOTTOM - TOP);

    let [width, height] = SIZE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#444\">\n\
         <title>Learning rate: {title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        title = escaped(title)
    );
    let mut text = |x: f64, y: f64, style: &str, words: &str| {
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escaped(words));
    };
    text(LEFT, 34.0, "font-size=\"19\" font-weight=\"600\" fill=\"#111\"", title);
    let pace = match schedule.on_updates() {
        true => format!("changes with each update, {updates_per_epoch} in an epoch"),
        false => "changes with each epoch".to_string(),
    };
    let metric = if schedule.memory(0).is_some() { ", as long as the metric improves" } else { "" };
    let facts = format!("{epochs} epochs, up to {}; {pace}{metric}", number(peak));
    text(LEFT, 56.0, "fill=\"#777\"", &facts);
    let middle = (LEFT + RIGHT) / 2.0;
    text(middle, height - 18.0, "text-anchor=\"middle\"", "epoch");
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 24 {})\"", (TOP + BOTTOM) / 2.0);
    text(24.0, (TOP + BOTTOM) / 2.0, &turned, "learning rate");
    for i in 0..=(top / y_step).round() as usize {
        let lr = i as f64 * y_step;
        text(LEFT - 10.0, y(lr) + 4.5, "text-anchor=\"end\"", &number(lr));
    }
    let x_ticks = (epochs / x_step + 1e-9).floor() as usize;
    for epoch in (0..=x_ticks).map(|i| i as f64 * x_step) {
        text(x(epoch), BOTTOM + 22.0, "text-anchor=\"middle\"", &number(epoch));
    }

    for i in 0..=(top / y_step).round() as usize {
        let (at, colour) = (y(i as f64 * y_step), if i == 0 { "#888" } else { "#e6e6e6" });
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"{colour}\"/>");
    }
    for epoch in (0..=x_ticks).map(|i| i as f64 * x_step) {
        let _ = writeln!(svg, "<path d=\"M{:.1} {BOTTOM}v6\" stroke=\"#888\"/>", x(epoch));
    }
    // The smallest first, so that the full rate lies on top.
    for (i, &share) in shares.iter().enumerate().rev() {
        let mut path = String::new();
        for &(epoch, lr) in &points {
            let _ = write!(path, "{:.1},{:.1} ", x(epoch), y(lr * f64::from(share)));
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-linejoin=\"round\"/>",
            path.trim_end(),
            colour(i, shares.len()),
            if shares.len() > NAMED { 1.4 } else { 2.0 },
        );
    }
    legend(&mut svg, &shares);
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, shares: &[f32]) {
    if shares.len() < 2 {
        return;
    }
    let rows = shares.len().min(NAMED);
    let (left, height) = (RIGHT - 118.0, 26.0 + 19.0 * rows as f64);
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{TOP}\" width=\"118\" height=\"{height}\" rx=\"4\" fill=\"#fff\" fill-opacity=\"0.9\" \
         stroke=\"#ddd\"/>\n<text x=\"{}\" y=\"{}\" fill=\"#777\">layers' share</text>",
        left + 12.0,
        TOP + 19.0
    );
    for row in 0..rows {
        let i = row * (shares.len() - 1) / (rows - 1);
        let y = TOP + 38.0 + 19.0 * row as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{} {}h22\" stroke=\"{}\" stroke-width=\"3\"/>\n<text x=\"{}\" y=\"{y}\">× {}</text>",
            left + 12.0,
            y - 4.5,
            colour(i, shares.len()),
            left + 42.0,
            number(f64::from(shares[i]))
        );
    }
}

/// Epochs and rates of all updates; where many fall on one column of the picture, its first, least, greatest and last.
fn points(schedule: &Schedule, updates_per_epoch: usize) -> Vec<(f64, f64)> {
    let epochs = schedule.total_epochs();
    let per_epoch = if schedule.on_updates() { updates_per_epoch.max(1) } else { 1 };
    let total = epochs * per_epoch;
    let columns = (RIGHT - LEFT) as usize;
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut column: Vec<(f64, f64)> = Vec::new();
    let mut close = |column: &mut Vec<(f64, f64)>| {
        let by_rate = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends =
            [column.first(), column.iter().min_by(by_rate), column.iter().max_by(by_rate), column.last()];
        let mut kept: Vec<(f64, f64)> = ends.into_iter().flatten().copied().collect();
        kept.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.dedup();
        points.extend(kept);
        column.clear();
    };
    let mut number = 0;
    for t in 0..total {
        let here = t * columns / total;
        if here != number {
            close(&mut column);
            number = here;
        }
        let lr = schedule.at(t / per_epoch, t as u64);
        column.push((t as f64 / per_epoch as f64, lr));
        // A rate lasts as long as its unit.
        if total <= 2 * columns {
            column.push(((t + 1) as f64 / per_epoch as f64, lr));
            close(&mut column);
        }
    }
    close(&mut column);
    points
}

/// A step of 1, 2 or 5 times a power of ten, of which at most `most` make `length`.
fn step(length: f64, most: f64) -> f64 {
    let power = 10f64.powf((length / most).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| length / step <= most).unwrap_or(10.0 * power)
}

/// In few digits: `0.05`, `3e-5`.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let digits: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    if (1e-4..1e6).contains(&digits.abs()) { format!("{digits}") } else { format!("{digits:e}") }
}

fn colour(i: usize, count: usize) -> String {
    let share = if count < 2 { 0.0 } else { i as f64 / (count - 1) as f64 };
    let mix = |c: usize| (COLOURS[0][c] + share * (COLOURS[1][c] - COLOURS[0][c])).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_train::ScheduleConfig;

    fn schedule(on_updates: bool, epochs: usize) -> Schedule {
        let config = ScheduleConfig { epochs, sched_on_updates: on_updates, ..ScheduleConfig::default() };
        Schedule::new(&config, 0.5, 1000).expect("schedule")
    }

    #[test]
    fn many_updates_become_few_points_that_keep_the_peak() {
        let points = points(&schedule(true, 300), 1000);
        assert!(points.len() < 4000);
        assert_eq!(points[0], (0.0, 1e-5));
        let plan = schedule(true, 300);
        let peak = (0..300_000).map(|t| plan.value(t as f64)).fold(0.0, f64::max);
        assert_eq!(points.iter().map(|p| p.1).fold(0.0, f64::max), peak);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    #[test]
    fn epochs_are_stairs() {
        let points = points(&schedule(false, 7), 1000);
        assert_eq!(points.len(), 14);
        assert_eq!((points[2].0, points[3].0, points[2].1), (1.0, 2.0, points[3].1));
    }

    #[test]
    fn a_line_for_each_share_and_names_are_escaped() {
        let shares: Vec<f32> = (0..13).map(|i| 0.75f32.powi(i)).chain([1.0]).collect();
        let svg = draw("a<b", &schedule(false, 300), 1, &shares);
        assert_eq!(svg.matches("<polyline").count(), 13);
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b") && !svg.contains("NaN"));
        assert!(svg.contains("× 1<") && svg.contains("learning rate"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([step(305.0, 12.0), step(0.5, 7.0), step(8.0, 12.0)], [50.0, 0.1, 1.0]);
        assert_eq!([number(0.05), number(3e-5), number(300.0)], ["0.05", "3e-5", "300"]);
    }
}
