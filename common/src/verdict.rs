//! What is decided about a packet, and why.

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Hook {
    /// The pod sends (tc ingress of the host's side of its veth).
    FromPod = 0,
    /// The pod receives (tc egress of the host's side of its veth).
    ToPod = 1,
}

impl Hook {
    pub const ALL: [Self; 2] = [Self::FromPod, Self::ToPod];

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::FromPod),
            1 => Some(Self::ToPod),
            _ => None,
        }
    }

    #[inline(always)]
    pub const fn opposite(self) -> Self {
        match self {
            Self::FromPod => Self::ToPod,
            Self::ToPod => Self::FromPod,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "egress",
            Self::ToPod => "ingress",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub pass: bool,
    pub reason: Reason,
}

/// Declares the reasons once: number, name, whether it passes, and one sentence. Retired numbers stay reserved.
macro_rules! reasons {
    ($($variant:ident = $number:literal, $name:literal, $pass:literal, $text:literal;)*) => {
        /// Why a packet passed or was dropped. The number is the index into COUNTERS.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $text] $variant = $number,)* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Stable, for logs, metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            #[inline(always)]
            pub const fn passes(self) -> bool {
                match self { $(Self::$variant => $pass,)* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

/// Numbers below this pass, from it on refuse.
pub const REFUSED_FIRST: u8 = 16;

reasons! {
    NotIsolated = 0, "not-isolated", true, "no policy isolates the pod";
    Neighbour = 1, "neighbour", true, "ARP, neighbour discovery, router solicitation or multicast listener report";
    Node = 2, "node", true, "sent by the pod's own node";
    Established = 3, "established", true, "belongs to a flow that was admitted";
    Reply = 4, "reply", true, "answers a flow that was admitted";
    Allowed = 5, "allowed", true, "a rule admits the new flow";
    Midstream = 6, "midstream", true, "continues a connection that a rule would have admitted";
    RelatedError = 7, "related-error", true, "ICMP error about an admitted flow";
    Fragment = 8, "fragment", true, "later fragment of an admitted packet";
    Kept = 9, "kept", true, "flow older than the change, kept as configured";
    Unremembered = 10, "unremembered", true, "admitted, but the flow table could not take it, so that answers may be refused";
    Service = 11, "service", true, "to a Service: each backend is judged where the packet ends up";
    Hairpin = 12, "hairpin", true, "from the pod to itself, by way of a Service";
    Paused = 13, "paused", true, "would have been refused, but an operator has paused enforcement";

    NoRule = 16, "no-rule", false, "the pod is isolated and no rule admits the flow";
    Closed = 17, "closed", false, "the pod is not known yet or cannot be enforced";
    SpoofedMac = 18, "spoofed-mac", false, "sent from a MAC address that is not the pod's";
    SpoofedAddress = 19, "spoofed-address", false, "sent from an IP address that is not the pod's";
    SpoofedNeighbour = 20, "spoofed-neighbour", false, "ARP or neighbour discovery for an address that is not the pod's";
    RouterAdvertisement = 21, "router-advertisement", false, "router advertisement from a pod";
    Redirect = 22, "redirect", false, "ICMP redirect from a pod";
    NotForPod = 23, "not-for-pod", false, "unicast to an address that is not the pod's";
    Malformed = 24, "malformed", false, "a header is truncated, lies about its length or is not legal";
    UnknownProtocol = 25, "unknown-protocol", false, "not IP, to or from an isolated pod";
    FragmentAlone = 26, "fragment-alone", false, "later fragment whose first was not admitted";
    UnrelatedError = 27, "unrelated-error", false, "ICMP error about no flow that was admitted";
    Unsettled = 28, "unsettled", false, "the tables changed repeatedly while the packet was judged";
    MidstreamBudget = 29, "midstream-budget", false, "more connections to take up again than the budget allows";
    Revoked = 30, "revoked", false, "the flow was admitted once and is not any longer";
    NoExit = 32, "no-exit", false, "to a Service, while a device by which packets leave the node lacks its program";
    NoStamp = 33, "no-stamp", false, "to a Service, from a pod for which no number was left to mark its packets with";
    UnknownStamp = 34, "unknown-stamp", false, "marked with a number that no pod has";
    SpoofedFragment = 31, "fragmented-header", false, "first fragment without the whole chain of headers";
}
