//! What the figures were measured on.

use std::fs;

/// One paragraph: processor, cores, kernel, load.
pub fn description() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor = field("model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let guest = if field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")) {
        ", a virtual machine"
    } else {
        ""
    };
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let governor = if governor.is_empty() { "unknown" } else { governor.trim() };
    let jit = if read("/proc/sys/net/core/bpf_jit_enable").trim() == "0" { "off" } else { "on" };
    format!(
        "{processor}, {cores} cores{guest}; Linux {}; frequency governor {governor}; JIT {jit}; load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load(),
    )
}

/// Runnable processes, averaged over one and five minutes.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut words = load.split(' ');
    format!("{} (1 min), {} (5 min)", words.next().unwrap_or("?"), words.next().unwrap_or("?"))
}
