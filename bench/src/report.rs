use std::fmt;

use serde_json::{Value, json};

use crate::Effort;
use crate::machine::Machine;
use crate::sample::{Sample, median, ratios};
use crate::table::Table;

/// All that a run says.
pub(crate) struct Report {
    machine: Machine,
    command: String,
    effort: Effort,
    pub(crate) measures: Vec<Measured>,
}

impl Report {
    /// A report without measures yet.
    pub(crate) fn new(effort: Effort) -> anyhow::Result<Self> {
        let args: Vec<_> = std::env::args().skip(1).collect();
        Ok(Self {
            machine: Machine::look()?,
            command: format!("larder-bench {}", args.join(" "))
                .trim_end()
                .to_owned(),
            effort,
            measures: Vec::new(),
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "command": self.command,
            "seed": self.effort.seed,
            "rounds": self.effort.rounds,
            "machine": self.machine.to_json(),
            "measures": self.measures.iter().map(Measured::to_json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let Effort { rounds, seed, .. } = self.effort;
        writeln!(f, "command: {}; seed {seed}, {rounds} rounds", self.command)?;
        self.measures
            .iter()
            .try_for_each(|measured| measured.fmt(f))
    }
}

/// What one measure gave.
pub(crate) struct Measured {
    title: &'static str,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    figures: Vec<Figure>,
    grids: Vec<Grid>,
    notes: Vec<String>,
}

/// Rows whose columns belong to one measure alone.
pub(crate) struct Grid {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub(crate) fn new(heads: Vec<String>) -> Self {
        let rows = Vec::new();
        Self { heads, rows }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn table(&self) -> Table {
        let heads: Vec<_> = self.heads.iter().map(|head| &**head).collect();
        let mut table = Table::new(&heads);
        for row in &self.rows {
            table.row(row.clone());
        }
        table
    }
}

/// A number that is no time of a request.
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    aim: Option<Aim>,
}

/// A contender in one discipline, its rounds together.
struct Row {
    name: String,
    sample: Sample,
}

/// A ratio that there is an aim for.
struct Ratio {
    what: String,
    aim: Aim,
    rounds: Vec<f64>,
    median: f64,
}

/// What a ratio is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    /// A time: this many times the other's at most.
    AtMost(f64),
    /// A throughput: this many times the other's at least.
    AtLeast(f64),
}

impl Aim {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound:.2}"),
            Self::AtLeast(bound) => write!(f, ">= {bound:.2}"),
        }
    }
}

impl Measured {
    pub(crate) fn new(title: &'static str) -> Self {
        Self {
            title,
            rows: Vec::new(),
            ratios: Vec::new(),
            figures: Vec::new(),
            grids: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a table of its own kind.
    pub(crate) fn grid(&mut self, grid: Grid) {
        self.grids.push(grid);
    }

    /// Adds something that must be known to read the rest.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a row of the rounds of one contender.
    pub(crate) fn row(&mut self, name: impl Into<String>, rounds: &[Sample]) {
        let (name, sample) = (name.into(), Sample::together(rounds));
        self.rows.push(Row { name, sample });
    }

    /// Adds how `ours` stands to `theirs`: in median latency, or in throughput, as the aim asks.
    pub(crate) fn ratio(
        &mut self,
        what: impl Into<String>,
        aim: Aim,
        ours: &[Sample],
        theirs: &[Sample],
    ) -> anyhow::Result<()> {
        let rounds = match aim {
            Aim::AtMost(_) => ratios(ours, theirs, |sample| sample.quantile_us(0.5)),
            Aim::AtLeast(_) => ratios(ours, theirs, Sample::reads_per_sec),
        };
        self.ratios.push(Ratio {
            what: what.into(),
            aim,
            median: median(&rounds)?,
            rounds,
        });
        Ok(())
    }

    /// Adds a number, with what it is held against if anything.
    pub(crate) fn figure(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        aim: Option<Aim>,
    ) {
        let what = what.into();
        self.figures.push(Figure {
            what,
            value,
            unit,
            aim,
        });
    }

    fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|Row { name, sample }| {
            json!({
                "row": name,
                "p50_us": sample.quantile_us(0.5),
                "p99_us": sample.quantile_us(0.99),
                "per_sec": sample.reads_per_sec(),
                "client_cpu_us": sample.client_cpu_us(),
                "server_cpu_us": sample.server_cpu_us(),
            })
        });
        let ratios = self.ratios.iter().map(|ratio| {
            json!({
                "ratio": ratio.what,
                "median": ratio.median,
                "rounds": ratio.rounds,
                "aim": ratio.aim.to_string(),
                "met": ratio.aim.is_met(ratio.median),
            })
        });
        let figures = self.figures.iter().map(|figure| {
            json!({
                "figure": figure.what,
                "value": figure.value,
                "unit": figure.unit,
                "aim": figure.aim.map(|aim| aim.to_string()),
                "met": figure.aim.map(|aim| aim.is_met(figure.value)),
            })
        });
        json!({
            "measure": self.title,
            "rows": rows.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
            "figures": figures.collect::<Vec<_>>(),
            "tables": self.grids.iter().map(|grid| {
                json!({ "heads": grid.heads, "rows": grid.rows })
            }).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}\n", self.title)?;
        if !self.notes.is_empty() {
            write!(f, "\n{}\n", self.notes.join("\n"))?;
        }
        for grid in &self.grids {
            write!(f, "\n{}", grid.table())?;
        }
        if !self.rows.is_empty() {
            write!(f, "\n{}", self.row_table())?;
        }
        if !self.ratios.is_empty() {
            write!(f, "\n{}", self.ratio_table())?;
        }
        if !self.figures.is_empty() {
            write!(f, "\n{}", self.figure_table())?;
        }
        Ok(())
    }
}

impl Measured {
    fn row_table(&self) -> Table {
        let heads = [
            "row",
            "p50 us",
            "p99 us",
            "per s",
            "CPU us, client + server",
        ];
        let mut table = Table::new(&heads);
        for Row { name, sample } in &self.rows {
            let client = sample.client_cpu_us();
            let cpu = match sample.server_cpu_us() {
                Some(server) => format!("{client:.1} + {server:.1}"),
                None => format!("{client:.1}"),
            };
            table.row(vec![
                name.clone(),
                format!("{:.1}", sample.quantile_us(0.5)),
                format!("{:.1}", sample.quantile_us(0.99)),
                format!("{:.0}", sample.reads_per_sec()),
                cpu,
            ]);
        }
        table
    }

    fn ratio_table(&self) -> Table {
        let mut table = Table::new(&["ratio", "median", "of rounds", "aim", ""]);
        for ratio in &self.ratios {
            let low = ratio.rounds.iter().copied().fold(f64::INFINITY, f64::min);
            let high = ratio.rounds.iter().copied().fold(0.0, f64::max);
            table.row(vec![
                ratio.what.clone(),
                format!("{:.2}", ratio.median),
                format!("{low:.2} to {high:.2}"),
                ratio.aim.to_string(),
                verdict(ratio.aim, ratio.median),
            ]);
        }
        table
    }

    fn figure_table(&self) -> Table {
        let mut table = Table::new(&["figure", "value", "aim", ""]);
        for figure in &self.figures {
            let Figure { value, unit, .. } = figure;
            table.row(vec![
                figure.what.clone(),
                match *value < 1.0 {
                    true => format!("{value:.3} {unit}"),
                    false => format!("{value:.1} {unit}"),
                },
                figure.aim.map_or_else(String::new, |aim| aim.to_string()),
                figure
                    .aim
                    .map_or_else(String::new, |aim| verdict(aim, *value)),
            ]);
        }
        table
    }
}

fn verdict(aim: Aim, value: f64) -> String {
    match aim.is_met(value) {
        true => "met".into(),
        false => "MISSED".into(),
    }
}
