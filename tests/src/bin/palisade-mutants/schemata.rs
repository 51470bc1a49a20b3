//! All mutants of a file in one text, each behind a switch; and where each stands in it.

use std::ops::Range;

use super::operators::{Change, Shape, Site};

/// A mutant of the whole run.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Path in the workspace.
    pub file: String,
    pub change: Change,
    /// Which of those that read the same in one function, from 1.
    pub place: usize,
    /// It does not type-check.
    pub unviable: bool,
}

/// A file with its mutants: those of `numbers` of each site, in the order of [`Site::mutants`].
#[derive(Debug)]
pub struct File {
    pub path: String,
    pub source: String,
    pub sites: Vec<(Site, Vec<usize>)>,
}

/// Where the mutants of a written file are.
#[derive(Debug, Default)]
pub struct Places {
    /// Bytes of a mutant's own text.
    texts: Vec<(Range<usize>, usize)>,
    /// Bytes of a site, and its mutants.
    sites: Vec<(Range<usize>, Vec<usize>)>,
}

impl Mutant {
    /// Names it apart from line numbers.
    pub fn name(&self) -> String {
        let Self { file, change: Change { function, description, .. }, place, .. } = self;
        let place = if *place > 1 { format!(" (place {place})") } else { String::new() };
        format!("{file} {function}: {description}{place}")
    }
}

impl Places {
    /// The mutants that a fault at these bytes is about: the one in whose text it is, else those of the smallest site.
    pub fn at(&self, position: usize) -> Vec<usize> {
        let text =
            self.texts.iter().filter(|(range, _)| range.contains(&position)).min_by_key(|(range, _)| range.len());
        if let Some((_, mutant)) = text {
            return vec![*mutant];
        }
        let site =
            self.sites.iter().filter(|(range, _)| range.contains(&position)).min_by_key(|(range, _)| range.len());
        site.map(|(_, mutants)| mutants.clone()).unwrap_or_default()
    }
}

/// The file with the mutants that `wanted` admits.
pub fn written(file: &File, wanted: impl Fn(usize) -> bool) -> (String, Places) {
    let mut writer = Writer { source: &file.source, out: String::new(), places: Places::default() };
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    for (site, numbers) in &file.sites {
        let mutants: Vec<_> =
            numbers.iter().copied().zip(&site.mutants).filter(|(number, _)| wanted(*number)).collect();
        while let Some(outer) = open.pop_if(|outer| outer.site.range.end <= site.range.start) {
            writer.copy(&mut at, outer.site.range.end);
            writer.close(&outer);
        }
        writer.copy(&mut at, site.range.start);
        if !mutants.is_empty() {
            let start = writer.out.len();
            writer.open(site, &mutants);
            open.push(Open { site, mutants, start });
        }
    }
    while let Some(outer) = open.pop() {
        writer.copy(&mut at, outer.site.range.end);
        writer.close(&outer);
    }
    writer.copy(&mut at, file.source.len());
    (writer.out, writer.places)
}

/// A site whose end is still to come.
struct Open<'a> {
    site: &'a Site,
    mutants: Vec<(usize, &'a Change)>,
    /// Bytes written before it.
    start: usize,
}

struct Writer<'a> {
    source: &'a str,
    out: String,
    places: Places,
}

impl Writer<'_> {
    fn copy(&mut self, at: &mut usize, to: usize) {
        self.out.push_str(&self.source[*at..to]);
        *at = to;
    }

    fn mutant(&mut self, number: usize, text: &str) {
        let start = self.out.len();
        self.out.push_str(text);
        self.places.texts.push((start..self.out.len(), number));
    }

    fn open(&mut self, site: &Site, mutants: &[(usize, &Change)]) {
        match site.shape {
            Shape::Expression => {
                self.out.push('(');
                for (number, change) in mutants {
                    self.mutant(*number, &format!("if {} {{ {} }}", on(*number), change.text));
                    self.out.push_str(" else ");
                }
                self.out.push_str("{ ");
            }
            Shape::Body => {
                for (number, change) in mutants {
                    self.mutant(*number, &format!(" if {} {{ return {}; }}", on(*number), change.text));
                }
            }
            Shape::Iterator => self.out.push_str(" ::core::iter::Iterator::take({"),
            Shape::Condition | Shape::Chain => {
                for (number, _) in mutants.iter().filter(|(_, change)| change.text == "true") {
                    self.mutant(*number, &format!("{} || ", on(*number)));
                }
                for (number, _) in mutants.iter().filter(|(_, change)| change.text == "false") {
                    self.mutant(*number, &format!("!{} && ", on(*number)));
                }
                if site.shape == Shape::Condition {
                    self.out.push('(');
                }
            }
            Shape::Pattern => {
                for (number, _) in mutants {
                    self.mutant(*number, &format!(" if !{}", on(*number)));
                }
            }
        }
    }

    fn close(&mut self, Open { site, mutants, start }: &Open<'_>) {
        match site.shape {
            Shape::Expression => self.out.push_str(" })"),
            Shape::Iterator => {
                self.out.push_str("}, ");
                for (number, _) in mutants {
                    self.mutant(*number, &format!("if {} {{ 0 }} else {{ usize::MAX }}", on(*number)));
                }
                self.out.push_str(") ");
            }
            Shape::Condition => self.out.push(')'),
            Shape::Body | Shape::Chain | Shape::Pattern => {}
        }
        self.places.sites.push((*start..self.out.len(), mutants.iter().map(|(number, _)| *number).collect()));
    }
}

fn on(number: usize) -> String {
    format!("::mutant_switch::on({number})")
}
