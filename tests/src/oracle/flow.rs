//! Connections as the oracle remembers them: a list, searched from the front.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::packet::Tcp;
use super::policy::Direction;

/// Both ends of a flow, the lower first, so that both directions are one flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub protocol: u8,
    pub ends: [(IpAddr, u16); 2],
}

/// A flow's packet, without its bytes: which flow, and which of the ends sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    pub tuple: Tuple,
    pub sender: usize,
}

/// Who may have opened a flow, asked at one hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admission {
    /// Which end opened.
    pub opener: usize,
    pub direction: Direction,
    /// The pod whose policies admitted it.
    pub endpoint: String,
}

/// A pod of this node that opened a flow, as its packets' mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub ifindex: u32,
    /// Of the pod and its veth.
    pub identity: String,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub tuple: Tuple,
    /// Which ends have opened it.
    pub opened: [bool; 2],
    /// ... as a process of the node.
    pub by_node: [bool; 2],
    /// To which endpoint the node sent last.
    pub node_to: Option<String>,
    /// With the instant of change at which each was last given.
    pub admissions: BTreeMap<Admission, u64>,
    /// Those that only let the packets go on, as a Service's.
    pub deferred: BTreeSet<Admission>,
    /// By sender: whose mark the packets bore that the receiving pod's policies admitted last.
    pub clients: [Option<Client>; 2],
    /// The instant of change at which the sender's own pod may have taken a packet for an answer or for an opening of its own.
    pub either_way: Option<u64>,
    /// What was first found to hold no longer, and in which second.
    pub cut: Option<(usize, Direction, u64)>,
    /// Taken up by the reverse question, and no packet of the opener seen since: when (ns).
    pub unconfirmed: Option<u64>,
    pub tcp: Closing,
    /// When the last packet passed (ns), by sender.
    pub seen: [u64; 2],
    /// When the connection last came nearer to its end (ns).
    ending: u64,
}

/// How far a TCP connection is closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closing {
    /// By sender: the sequence number behind its FIN.
    fin_next: [Option<u32>; 2],
    fin_acknowledged: [bool; 2],
    /// Reset by a pod at its own hook, which cannot be forged.
    reset: bool,
    /// A reset came from elsewhere.
    reset_seen: bool,
}

/// How long the last words of a closed connection are its own (ns), from its end or the last packet of who opened it.
pub const LAST_WORDS: u64 = 10_000_000_000;
/// How long an unconfirmed flow lives (ns).
pub const UNCONFIRMED_LIFE: u64 = 2_000_000_000;
/// How long answers to what is not allowed any longer open nothing (s), where the protocol has no connections.
pub const CUT_SECONDS: u64 = 30;

impl Passage {
    pub fn new(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> Self {
        let sender = usize::from(source > destination);
        let ends = if sender == 0 { [source, destination] } else { [destination, source] };
        Self { tuple: Tuple { protocol, ends }, sender }
    }

    pub fn receiver(&self) -> usize {
        1 - self.sender
    }
}

impl Flow {
    pub fn new(tuple: Tuple) -> Self {
        Self {
            tuple,
            opened: [false; 2],
            by_node: [false; 2],
            node_to: None,
            admissions: BTreeMap::new(),
            deferred: BTreeSet::new(),
            clients: [None, None],
            either_way: None,
            cut: None,
            unconfirmed: None,
            tcp: Closing::default(),
            seen: [0; 2],
            ending: 0,
        }
    }

    /// `deferred`: only to be let go on.
    pub fn admit(&mut self, admission: Admission, epoch: u64, deferred: bool) {
        self.opened[admission.opener] = true;
        if self.cut.is_some_and(|(opener, direction, _)| (opener, direction) == (admission.opener, admission.direction))
        {
            self.cut = None;
        }
        if deferred {
            self.deferred.insert(admission.clone());
        } else {
            self.deferred.remove(&admission);
        }
        self.admissions.insert(admission, epoch);
    }

    /// Who is behind the opener's address. What another had who was there is forgotten.
    pub fn open_for(&mut self, opener: usize, client: Option<Client>) {
        if self.clients[opener] != client || self.by_node[opener] {
            *self = Self::new(self.tuple.clone());
            self.clients[opener] = client;
        }
    }

    /// When anybody's policies last admitted this, as an instant of change.
    pub fn admitted_at(&self, opener: usize, direction: Direction) -> Option<u64> {
        let these = self.admissions.iter().filter(|(it, _)| (it.opener, it.direction) == (opener, direction));
        these.map(|(_, epoch)| *epoch).max()
    }

    /// Takes note in `second` that this holds no longer. Whether the end that did not open the flow may open one by now.
    pub fn cut(&mut self, opener: usize, direction: Direction, second: u64) -> bool {
        match self.cut {
            Some((of, whose, since)) if (of, whose) == (opener, direction) => second - since > CUT_SECONDS,
            Some(_) | None => {
                self.cut = Some((opener, direction, second));
                false
            }
        }
    }

    /// `tcp` passed at `time`, sent by end `sender`; `certain`: the hook is the sender's own.
    pub fn follow(&mut self, tcp: &Tcp, sender: usize, certain: bool, time: u64) {
        let before = self.tcp;
        self.follow_flags(tcp, sender, certain);
        let ending = |closing: &Closing| (closing.reset, closing.reset_seen, closing.fin_acknowledged);
        if ending(&before) != ending(&self.tcp) {
            self.ending = time;
        }
    }

    fn follow_flags(&mut self, tcp: &Tcp, sender: usize, certain: bool) {
        let closing = &mut self.tcp;
        if tcp.syn && !tcp.ack {
            *closing = Closing::default();
        }
        if tcp.rst {
            closing.reset |= certain;
            closing.reset_seen |= !certain;
            return;
        }
        if self.opened[sender] {
            closing.reset_seen = false;
        }
        if tcp.fin {
            closing.fin_next[sender] = Some(tcp.sequence.wrapping_add(tcp.payload as u32).wrapping_add(1));
        }
        if let Some(next) = closing.fin_next[1 - sender].filter(|_| tcp.ack) {
            let behind = tcp.acknowledgement.wrapping_sub(next) as i32;
            closing.fin_acknowledged[1 - sender] |= behind >= 0;
        }
    }

    /// Closed, or a reset came from somewhere.
    pub fn is_ending(&self) -> bool {
        self.tcp.reset_seen || self.closed()
    }

    pub fn closed(&self) -> bool {
        self.tcp.reset || self.tcp.fin_acknowledged == [true; 2]
    }

    /// Whether a TCP segment of the end that did not open the flow still answers it.
    pub fn answers(&self, tcp: &Tcp, sender: usize, time: u64) -> bool {
        let since = |then: u64| time.saturating_sub(then);
        // Answers themselves do not prolong it.
        let openers = (0..2).filter(|end| self.opened[*end] || *end != sender).map(|end| self.seen[end]);
        let recent = since(openers.fold(self.ending, u64::max)) <= LAST_WORDS;
        if self.closed() {
            return recent && tcp.payload == 0 && !tcp.syn;
        }
        !self.tcp.reset_seen || recent
    }
}
