//! Benchmarks: ratios against a floor and against the tool that people use today, measured
//! alternately in one run.
//!
//! In: the name of a benchmark and how often it is measured. Out: [`Line`]s, in the form that all
//! benchmarks of the project share. No stored figure of an earlier run is ever compared with.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::{Error, Result, net};

pub mod api;
pub mod daemon;
pub mod flows;
pub mod guest;
pub mod native;
pub mod observer;
pub mod plug;
pub mod switch;

/// One benchmark's result.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its name.
    pub bench: String,
    /// The unit of the figures.
    pub unit: &'static str,
    /// Median of ours.
    pub median: f64,
    /// Smallest of ours.
    pub min: f64,
    /// Largest of ours.
    pub max: f64,
    /// How often ours was measured.
    pub runs: usize,
    /// What ours was measured against, in turn.
    pub against: BTreeMap<&'static str, Against>,
    /// Where and how.
    pub note: String,
    /// Why there are no figures, where this machine cannot have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// What ours was measured against.
#[derive(Debug, Clone, Serialize)]
pub struct Against {
    /// Median of theirs.
    pub median: f64,
    /// Median of the pairwise ratios, ours divided by theirs.
    pub ratio: f64,
}

/// What one run of a benchmark found: ours, and what it was measured against, by name.
#[derive(Debug, Clone)]
pub struct Run {
    /// Our figure.
    pub ours: f64,
    /// The others', of the same run.
    pub theirs: Vec<(&'static str, f64)>,
}

impl Line {
    /// The line of these runs. A ratio is the median of the ratios within each run.
    pub fn of(bench: impl Into<String>, unit: &'static str, runs: &[Run], note: String) -> Line {
        let ours = || runs.iter().map(|run| run.ours);
        let mut theirs: BTreeMap<&'static str, Vec<(f64, f64)>> = BTreeMap::new();
        for run in runs {
            for (name, figure) in &run.theirs {
                theirs.entry(name).or_default().push((run.ours, *figure));
            }
        }
        let against = theirs.into_iter().map(|(name, pairs)| {
            let against = Against {
                median: median(pairs.iter().map(|(_, theirs)| *theirs).collect()),
                ratio: median(pairs.iter().map(|(ours, theirs)| ours / theirs).collect()),
            };
            (name, against)
        });
        Line {
            bench: bench.into(),
            unit,
            median: median(ours().collect()),
            min: ours().fold(f64::INFINITY, f64::min),
            max: ours().fold(0.0, f64::max),
            runs: runs.len(),
            against: against.collect(),
            note,
            skipped: None,
        }
    }

    /// A benchmark that this machine cannot run, and why.
    pub fn skipped(bench: impl Into<String>, unit: &'static str, why: String) -> Line {
        Line {
            bench: bench.into(),
            unit,
            median: 0.0,
            min: 0.0,
            max: 0.0,
            runs: 0,
            against: BTreeMap::new(),
            note: String::new(),
            skipped: Some(why),
        }
    }
}

impl fmt::Display for Line {
    /// For people: two lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.skipped {
            return write!(f, "{:<34} skipped: {why}", self.bench);
        }
        let Line { bench, unit, median, min, max, runs, .. } = self;
        write!(f, "{bench:<34} {median:.2} {unit} ({min:.2} to {max:.2}, {runs} runs)")?;
        for (name, against) in &self.against {
            write!(f, "; {name} {:.2}, ratio {:.2}", against.median, against.ratio)?;
        }
        write!(f, "\n  {}", self.note)
    }
}

/// The middle of a list; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn kernel(owner: tc_flows::Owner) -> Result<tc_flows::NetlinkKernel> {
    tc_flows::NetlinkKernel::open(owner).map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Format { what: "flows".into(), text: error.to_string() }
}

fn ifindex(netdev: &str) -> Result<tc_flows::Ifindex> {
    let link = net::ip_json(&format!("link show {netdev}"))?;
    let number = link[0]["ifindex"].as_u64().and_then(|n| u32::try_from(n).ok());
    number.and_then(tc_flows::Ifindex::new).ok_or_else(|| Error::Format {
        what: format!("ifindex of {netdev}"),
        text: link.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_pairwise_ratios() {
        let run = |(ours, floor)| Run { ours, theirs: vec![("floor", floor)] };
        let runs = [(2.0, 1.0), (9.0, 3.0), (4.0, 4.0)].map(run);
        let line = Line::of("x", "ms", &runs, String::new());
        assert_eq!((line.median, line.min, line.max, line.runs), (4.0, 2.0, 9.0, 3));
        assert_eq!((line.against["floor"].median, line.against["floor"].ratio), (3.0, 2.0));
    }
}
