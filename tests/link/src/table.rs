//! Counters of all links that carried something, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use crate::link::Counters;
use crate::net::Net;

/// One direction of a link.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the sending node.
    pub from: String,
    /// Name of the receiving node.
    pub to: String,
    /// What happened.
    #[serde(flatten)]
    pub counters: Counters,
}

/// Every direction on which something was sent, by node numbers.
pub fn rows(net: &Net) -> Vec<Row> {
    let nodes = net.nodes();
    let mut rows = Vec::new();
    for (from, sender) in (1..).zip(nodes) {
        for (to, receiver) in (1..).zip(nodes) {
            let counters = net.counters(from, to);
            if counters.sent > 0 {
                rows.push(Row {
                    from: sender.name().to_owned(),
                    to: receiver.name().to_owned(),
                    counters,
                });
            }
        }
    }
    rows
}

const HEADS: [&str; 14] = [
    "link", "sent", "arrived", "bytes", "twice", "held", "cut", "mtu", "loss", "burst", "queue",
    "full", "refused", "on way",
];

/// The rows as a table with a line of heads; columns are right-aligned but for the first.
pub fn text(rows: &[Row]) -> String {
    let mut lines = vec![HEADS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<_> = (0..HEADS.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let [link, numbers @ ..] = line;
        let _ = write!(text, "{link:0$}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[1..]) {
            let _ = write!(text, "  {number:>width$}");
        }
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> [String; HEADS.len()] {
    let Counters {
        sent,
        delivered,
        delivered_bytes,
        duplicated,
        reordered,
        in_flight,
        dropped,
        ..
    } = row.counters;
    let numbers = [
        sent,
        delivered,
        delivered_bytes,
        duplicated,
        reordered,
        dropped.cut,
        dropped.mtu,
        dropped.loss,
        dropped.burst,
        dropped.queue,
        dropped.full,
        dropped.refused,
        in_flight,
    ];
    let mut cells = [const { String::new() }; HEADS.len()];
    cells[0] = format!("{} -> {}", row.from, row.to);
    for (cell, number) in cells[1..].iter_mut().zip(numbers) {
        *cell = number.to_string();
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_heads_and_json_has_every_counter() {
        let counters = Counters {
            sent: 1_234_567,
            ..Counters::default()
        };
        let row = Row {
            from: "coordinator".into(),
            to: "w1".into(),
            counters,
        };
        let text = text(std::slice::from_ref(&row));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].len(), lines[1].len(), "{text}");
        assert!(lines[1].starts_with("coordinator -> w1  1234567"), "{text}");
        let json = serde_json::to_value(&row).expect("JSON");
        assert_eq!(json["from"], "coordinator");
        assert_eq!(json["sent"], 1_234_567);
        assert_eq!(json["dropped"]["cut"], 0);
    }
}
