//! Random changes: policies, labels, and how pods come, go, and leave their addresses to others, in the wrong order too
//! (SEMANTICS 8 and 9).

use serde_json::{Value, json};

use super::Dice;
use super::cluster::{Cluster, NAMESPACES, PORTS, Pod, namespace_line};

/// Pods of this node that packets can be sent from and to, at least.
const REACHABLE_MIN: usize = 2;

impl Cluster {
    /// `None`: what chance wanted is not possible now.
    pub fn change(&mut self, dice: &mut Dice) -> Option<Value> {
        if dice.percent(30) && !self.late.is_empty() {
            return Some(json!(self.late.remove(0)));
        }
        if dice.percent(30) && self.pods.iter().any(|pod| pod.leaving) {
            return self.delete_pod(dice, |pod| pod.leaving);
        }
        match dice.below(68) {
            0..=15 => Some(self.policy(dice)),
            16..=20 => self.delete_policy(dice),
            21..=34 => self.relabel(dice),
            35..=37 => self.delete_pod(dice, |_| true),
            38..=42 => {
                let local = dice.percent(60);
                Some(self.new_pod(dice, local))
            }
            43 | 44 => self.finish_pod(dice),
            45 => self.terminate_pod(dice),
            46 | 47 => Some(self.early_pod(dice)),
            48 | 49 => self.complete_pod(dice),
            50 => self.hide_pod(dice),
            51 | 52 => self.recreate_pod(dice),
            53 | 54 => self.hand_over(dice),
            55 => self.lose_veth(dice),
            56..=58 => Some(self.namespace(dice)),
            59..=63 => Some(self.service(dice)),
            64 | 65 => self.delete_service(dice),
            66 => Some(self.own(dice)),
            _ => self.redelete(dice),
        }
    }

    fn some_pod(&self, dice: &mut Dice, fits: impl Fn(&Pod) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.pods.len()).filter(|at| fits(&self.pods[*at])).collect();
        if fitting.is_empty() { None } else { Some(*dice.pick(&fitting)) }
    }

    /// Whether pods enough remain that packets can be sent from without this one.
    fn is_spare(&self, at: usize) -> bool {
        let reachable = self.pods.iter().filter(|pod| pod.is_reachable()).count();
        !self.pods[at].is_reachable() || reachable > REACHABLE_MIN
    }

    /// Its address may be another's, unless it is already.
    fn release(&mut self, pod: &Pod) {
        if !pod.host_network && !pod.finished && !pod.leaving {
            self.free.entry(pod.local).or_default().push(pod.address);
        }
    }

    fn delete_pod(&mut self, dice: &mut Dice, fits: impl Fn(&Pod) -> bool) -> Option<Value> {
        let at = self.some_pod(dice, fits).filter(|at| self.pods.len() > 4 && self.is_spare(*at))?;
        let pod = self.pods.remove(at);
        self.release(&pod);
        // Of a pod that the API never told of, only the veth can go.
        Some(json!(if pod.known { format!("delete pod {}", pod.name) } else { format!("unveth {}", pod.name) }))
    }

    /// A deletion that was told already.
    fn redelete(&mut self, dice: &mut Dice) -> Option<Value> {
        let at = self.some_pod(dice, |pod| pod.known)?;
        Some(json!(format!("delete pod {} uid:u{}", self.pods[at].name, self.pods[at].uid + 1000)))
    }

    /// A pod ends; its address may be another's from now on.
    fn finish_pod(&mut self, dice: &mut Dice) -> Option<Value> {
        let phase = *dice.pick(&["Succeeded", "Failed"]);
        let fits = |pod: &Pod| !pod.finished && !pod.host_network && pod.known && pod.addressed;
        let at = self.some_pod(dice, fits).filter(|at| self.is_spare(*at))?;
        let pod = self.pods[at].clone();
        self.release(&pod);
        self.pods[at].finished = true;
        Some(json!({format!("patch pod {}", pod.name): {"status": {"phase": phase}}}))
    }

    fn terminate_pod(&mut self, dice: &mut Dice) -> Option<Value> {
        let at = self.some_pod(dice, |pod| pod.known && !pod.finished)?;
        let patch = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        Some(json!({format!("patch pod {}", self.pods[at].name): patch}))
    }

    /// A veth before its pod's object, or a pod before its addresses.
    fn early_pod(&mut self, dice: &mut Dice) -> Value {
        let unknown = dice.percent(60);
        let local = unknown || dice.percent(60);
        let name = format!("{}/e{}", dice.pick(&NAMESPACES), self.next_uid);
        let mut pod = self.pod(dice, name, local, false);
        // By its CNI result alone.
        let silent = !unknown && local && dice.percent(50);
        pod.known = !unknown;
        pod.addressed = unknown || silent;
        let option = if silent { " nostatus" } else { "" };
        let option = if unknown { " noobject" } else { option };
        let line = format!("{}{option}", pod.line());
        self.pods.push(pod);
        json!(line)
    }

    /// What was missing of a pod.
    fn complete_pod(&mut self, dice: &mut Dice) -> Option<Value> {
        let at = self.some_pod(dice, |pod| !pod.finished && (!pod.known || !pod.addressed))?;
        let pod = &mut self.pods[at];
        if !pod.known {
            pod.known = true;
            return Some(json!(pod.line()));
        }
        pod.addressed = true;
        let list: Vec<Value> = pod.ips().into_iter().map(|ip| json!({"ip": ip})).collect();
        let patch = json!({"status": {"phase": "Running", "podIP": pod.ip(false), "podIPs": list}});
        Some(json!({format!("patch pod {}", pod.name): patch}))
    }

    /// The object goes before the veth.
    fn hide_pod(&mut self, dice: &mut Dice) -> Option<Value> {
        let at = self.some_pod(dice, |pod| pod.known && pod.is_reachable())?;
        self.pods[at].known = false;
        Some(json!(format!("forget pod {}", self.pods[at].name)))
    }

    /// A pod of the same name, and mostly of another address; now and then the old one is said to be gone only later.
    fn recreate_pod(&mut self, dice: &mut Dice) -> Option<Value> {
        let fits = |pod: &Pod| pod.known && pod.addressed && !pod.host_network && !pod.finished && !pod.leaving;
        let at = self.some_pod(dice, fits)?;
        let old = self.pods[at].clone();
        let late = dice.percent(50);
        // Before, so that it may have the old one's address.
        if !late || dice.percent(40) {
            self.release(&old);
        }
        let new = self.pod(dice, old.name.clone(), old.local, false);
        let line = json!(new.line());
        self.pods[at] = new;
        if late {
            self.late.push(format!("delete pod {} uid:u{}", old.name, old.uid));
            return Some(line);
        }
        Some(json!([format!("delete pod {}", old.name), line]))
    }

    /// A new pod has the address of one that is said to be gone only later.
    fn hand_over(&mut self, dice: &mut Dice) -> Option<Value> {
        let fits = |pod: &Pod| pod.addressed && !pod.host_network && !pod.finished && !pod.leaving;
        let at = self.some_pod(dice, fits)?;
        self.pods[at].leaving = true;
        let local = self.pods[at].local;
        self.free.entry(local).or_default().push(self.pods[at].address);
        Some(self.new_pod(dice, local))
    }

    /// The veth goes before the object.
    fn lose_veth(&mut self, dice: &mut Dice) -> Option<Value> {
        let at = self.some_pod(dice, |pod| pod.known && pod.is_reachable()).filter(|at| self.is_spare(*at))?;
        self.pods[at].veth = false;
        Some(json!(format!("unveth {}", self.pods[at].name)))
    }

    /// A namespace's object goes, comes, or becomes another.
    fn namespace(&mut self, dice: &mut Dice) -> Value {
        let name = *dice.pick(&NAMESPACES);
        if self.namespaces.contains(name) && dice.percent(40) {
            self.namespaces.remove(name);
            return json!(format!("delete ns {name}"));
        }
        self.namespaces.insert(name);
        namespace_line(name, dice)
    }

    /// What is known of a pod's sockets from now on.
    pub fn listen(&self, dice: &mut Dice) -> Option<Value> {
        let pod = self.any(dice, true)?;
        let ports =
            if dice.percent(30) { "none".to_owned() } else { format!("{},{}", dice.pick(&PORTS), dice.pick(&PORTS)) };
        Some(json!(format!("listen {} {ports}", pod.name)))
    }
}
