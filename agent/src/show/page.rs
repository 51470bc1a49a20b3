//! What a command prints: columns and lines for people, JSON or YAML with stable field names for programs.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use super::table::Columns;
use crate::config::Output;

/// Text for people, in the order in which it is said.
#[derive(Debug)]
pub struct Page {
    text: String,
    wide: bool,
}

impl Page {
    /// More than fits beside each other on most terminals is wanted.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    pub fn line(&mut self, line: impl Display) {
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    pub fn columns(&mut self, columns: &Columns) {
        self.text.push_str(&columns.render(self.wide));
    }
}

/// Prints `value` for programs, or the page for people.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn show<T: Serialize + ?Sized>(output: Output, value: &T, page: impl FnOnce(&mut Page)) -> anyhow::Result<()> {
    print(&render(output, value, page)?)
}

fn render<T: Serialize + ?Sized>(output: Output, value: &T, page: impl FnOnce(&mut Page)) -> anyhow::Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
        Output::Yaml => serde_norway::to_string(value)?,
        Output::Table | Output::Wide => {
            let mut shown = Page { text: String::new(), wide: output == Output::Wide };
            page(&mut shown);
            shown.text
        }
    })
}

/// Writes to standard output. The terminal's codes are left out where it is none, or where NO_COLOR is set. Who reads may have read enough
/// (`| head`): that is no error.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form() {
        let value = serde_json::json!({ "pod": "a/web", "ports": [80, 443] });
        let form = |output| {
            let text = render(output, &value, |page| {
                let wide = page.is_wide();
                page.line(format_args!("wide: {wide}"));
                let mut columns = Columns::with_wide(&["POD"], &["PORTS"]);
                columns.row(["a/web", "80,443"]);
                page.columns(&columns);
            });
            anstream::adapter::strip_str(&text.expect("it can be shown")).to_string()
        };
        assert_eq!(form(Output::Table), "wide: false\nPOD\na/web\n");
        assert_eq!(form(Output::Wide), "wide: true\nPOD    PORTS\na/web  80,443\n");
        assert_eq!(form(Output::Json), "{\n  \"pod\": \"a/web\",\n  \"ports\": [\n    80,\n    443\n  ]\n}\n");
        assert_eq!(form(Output::Yaml), "pod: a/web\nports:\n- 80\n- 443\n");
    }
}
