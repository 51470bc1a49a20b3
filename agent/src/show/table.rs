//! Columns that line up.

use std::fmt::Write as _;

use super::style;

/// Rows of text under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Columns {
    rows: Vec<Vec<Cell>>,
    /// So many columns, at the right, are shown only where there is room (`-o wide`).
    wide: usize,
}

/// Text, and how it stands out on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub style: anstyle::Style,
}

impl Cell {
    pub fn new(text: impl Into<String>, style: anstyle::Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, anstyle::Style::new())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Columns {
    pub fn new(heading: &[&str]) -> Self {
        Self::with_wide(heading, &[])
    }

    /// `wide`: the columns of `-o wide`, right of the others.
    pub fn with_wide(heading: &[&str], wide: &[&str]) -> Self {
        let heading = heading.iter().chain(wide).map(|cell| Cell::new(*cell, style::HEADING)).collect();
        Self { rows: vec![heading], wide: wide.len() }
    }

    /// A cell for each column, those of `-o wide` included.
    pub fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Rows below the heading.
    pub fn len(&self) -> usize {
        self.rows.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines, with the terminal's codes for what stands out.
    pub(super) fn render(&self, wide: bool) -> String {
        let columns = self.rows[0].len() - if wide { 0 } else { self.wide };
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.iter().take(columns).rposition(|cell| !cell.text.is_empty());
            let shown = row.iter().zip(&widths).take(last.map_or(0, |last| last + 1));
            for (column, (Cell { text: cell, style }, width)) in shown.enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let padding = if Some(column) == last { 0 } else { width - cell.chars().count() };
                let _ = write!(text, "{gap}{style}{cell}{style:#}{:padding$}", "");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(columns: &Columns, wide: bool) -> String {
        anstream::adapter::strip_str(&columns.render(wide)).to_string()
    }

    #[test]
    fn columns_line_up() {
        let mut columns = Columns::new(&["A", "LONG"]);
        columns.row(["abc", "x"]);
        assert_eq!(plain(&columns, false), "A    LONG\nabc  x\n");
        assert_eq!(columns.len(), 1);
    }

    #[test]
    fn what_stands_out_takes_no_room() {
        let mut columns = Columns::new(&["A", "B", "C"]);
        columns.row([Cell::new("bad", style::BAD), "x".into(), "".into()]);
        columns.row(["yes!", "", "z"]);
        assert_eq!(plain(&columns, false), "A     B  C\nbad   x\nyes!     z\n");
        assert!(columns.render(false).contains(&format!("{}bad{:#}", style::BAD, style::BAD)));
    }

    #[test]
    fn more_where_there_is_room() {
        let mut columns = Columns::with_wide(&["A"], &["MORE"]);
        columns.row(["abc", "x"]);
        assert_eq!(plain(&columns, false), "A\nabc\n");
        assert_eq!(plain(&columns, true), "A    MORE\nabc  x\n");
    }
}
