use std::fmt;

/// Columns as wide as they must be: the first to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heads: &[&str]) -> Self {
        let heads = heads.iter().map(ToString::to_string).collect();
        Self { rows: vec![heads] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// Markdown, so that it can be pasted.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let width = self.width(column);
                match column {
                    0 => write!(f, "| {cell:<width$} |")?,
                    _ => write!(f, " {cell:>width$} |")?,
                }
            }
            writeln!(f)?;
            if number == 0 {
                for column in 0..row.len() {
                    let dashes = "-".repeat(self.width(column).max(3));
                    match column {
                        0 => write!(f, "| {dashes} |")?,
                        _ => write!(f, " {}: |", &dashes[1..])?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["row", "us"]);
        table.row(vec!["bare".into(), "1234".into()]);
        let expected = "| row  |   us |\n| ---- | ---: |\n| bare | 1234 |\n";
        assert_eq!(table.to_string(), expected);
    }
}
