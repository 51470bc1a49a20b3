//! An explanation for people.

use super::{End, Explained, Hook, Question, Way};
use crate::show::page::Page;
use crate::show::style;

pub(super) fn tell(page: &mut Page, explained: &Explained) {
    let Explained { verdict, source, destination, ways } = explained;
    let ports: std::collections::BTreeSet<&str> = ways.iter().map(|way| &*way.port).collect();
    let ports = Vec::from_iter(ports).join(", ");
    page.line(format_args!("{source} -> {destination} {ports}: {}", verdict_text(verdict)));
    let mut told: Option<&Way> = None;
    for way in ways {
        let backend = way.backend.as_ref().map(|end| format!(", which stands for {}", end_text(end)));
        let title =
            format!("{} -> {}{}", end_text(&way.source), end_text(&way.destination), backend.unwrap_or_default());
        page.line(format_args!("\n{title} {}: {}", protocol(&way.port), verdict_text(way.verdict)));
        if told.is_some_and(|told| is_alike(told, way)) {
            page.line("  as above");
            continue;
        }
        told = Some(way);
        if way.hooks.is_empty() {
            page.line("  nothing on this node judges it");
        }
        for (number, hook) in way.hooks.iter().enumerate() {
            tell_hook(page, number + 1, hook);
        }
        for question in &way.open_questions {
            page.line(format_args!("  {}?{:#} {question}", style::WARN, style::WARN));
        }
    }
}

fn tell_hook(page: &mut Page, number: usize, hook: &Hook) {
    let pod = hook.pod.as_deref().unwrap_or("a pod");
    let interface = hook.interface.as_ref().map(|interface| format!(" at {interface}")).unwrap_or_default();
    let place = match hook.hook {
        "from-pod" => format!("leaves {pod}{interface}"),
        "to-pod" => format!("reaches {pod}{interface}"),
        "exit" => "leaves the node".to_owned(),
        _ => "reaches a process of the node".to_owned(),
    };
    let (shade, verdict) = if hook.verdict == "passes" { (style::GOOD, "passes") } else { (style::BAD, "refused") };
    let unreached = if hook.reached { "" } else { "; it does not come that far, this is what it would be told" };
    page.line(format_args!(
        "  {number} {place}: {shade}{verdict}{shade:#}, {} ({}){unreached}",
        hook.meaning, hook.reason
    ));
    if let Some(until) = &hook.paused_until {
        page.line(format_args!("      {}paused{:#}  until {until}, then refused", style::WARN, style::WARN));
    }
    if !hook.xdp.is_empty() {
        page.line(format_args!("      hook    xdp, refused where it comes in: {}", hook.xdp.join(", ")));
    }
    for question in &hook.asked {
        tell_question(page, question);
    }
    for change in &hook.change {
        page.line(format_args!("      change  {change}"));
    }
}

fn tell_question(page: &mut Page, question: &Question) {
    let Question { direction, pod, table, policies, peer, class, class_means, class_found, row, own_row, rule, .. } =
        question;
    page.line(format_args!("      asked   {direction} of {pod}: table {table}, of {}", policies.join(", ")));
    if let Some(class) = class {
        let found = class_found.map_or_else(|| "in no table of classes".to_owned(), |map| format!("by {map}"));
        let means = class_means.as_deref().unwrap_or("not in the catalog");
        page.line(format_args!("      peer    {peer} is of class {class} {found}: {means}"));
    }
    if let Some(row) = row {
        let whose = if *own_row { "RULES has for the class" } else { "no row for the class; everybody may use" };
        page.line(format_args!("      row     {whose}: {row}"));
    }
    if let Some(rule) = rule {
        let place = if rule.policy.is_empty() {
            "not in the catalog".to_owned()
        } else {
            format!("{} {} rule {}", rule.policy, rule.direction, rule.index)
        };
        page.line(format_args!("      rule    {place} (number {})", rule.number));
    }
}

/// Told before, of another address.
fn is_alike(one: &Way, other: &Way) -> bool {
    let hook = |hook: &Hook| {
        let asked: Vec<_> =
            hook.asked.iter().map(|asked| (asked.table, asked.class, asked.allowed, asked.own_row)).collect();
        (hook.hook, hook.pod.clone(), hook.reached, hook.reason, hook.paused_until.clone(), asked)
    };
    let key =
        |way: &Way| (way.port.clone(), way.hooks.iter().map(hook).collect::<Vec<_>>(), way.open_questions.clone());
    key(one) == key(other)
}

fn end_text(end: &End) -> String {
    let address = match (end.address, end.port) {
        (address, None) => address.to_string(),
        (address, Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    };
    match &end.name {
        Some(name) => format!("{name} ({address})"),
        None => address,
    }
}

fn protocol(port: &str) -> &str {
    port.split('/').next().unwrap_or(port)
}

fn verdict_text(verdict: &str) -> String {
    let shade = if verdict == "allowed" { style::GOOD } else { style::BAD };
    format!("{shade}{}{shade:#}", verdict.to_uppercase())
}
