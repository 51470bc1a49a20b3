//! Every map of the programs. Sizes here are placeholders: the agent sets `max_entries` of each from its flags when it loads.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use palisade_common::layout::{
    AWAITED_SINCE, Address, Backends, CAPTURES_MAX, CaptureWanted, Captured, Config, EndpointRecord, EndpointStats,
    Event, FlowKey, FlowStats, FlowValue, FragmentKey, FragmentValue, PAUSES_MAX, PauseKey, PortKey, PortValue,
    REASONS, RULE_HITS_MAX, RuleKey, RuleValue, SERVICE_PORT_WORDS, ServiceKey, UplinkConfig, Versioned,
};
use palisade_common::parse::Packet;

/// The agent maps it into its memory and stores whole words.
#[btf_map]
pub static CONFIG: Array<Config, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
pub static FLOW_STATS: Array<FlowStats, 1> = Array::new();

#[btf_map]
pub static ENDPOINTS: HashMap<u32, Versioned, 1024> = HashMap::new();

/// Direct-mapped by interface index: the epoch (upper half) and the record index that a program found at it. The programs fill it; it
/// holds for one epoch only, and the record says whose it is.
#[btf_map]
pub static HINTS: Array<u64, HINTS_LEN> = Array::new();

const HINTS_LEN: usize = 4096;
pub const HINT_MASK: u32 = HINTS_LEN as u32 - 1;

#[btf_map]
pub static RECORDS: Array<EndpointRecord, 1024> = Array::new();

#[btf_map]
pub static ENDPOINT_STATS: Array<EndpointStats, 1024> = Array::new();

#[btf_map]
pub static CLASS_EXACT_V4: HashMap<u32, Versioned, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static CLASS_EXACT_V6: HashMap<Address, Versioned, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static CLASS_CIDR_V4: LpmTrie<u32, Versioned, 1024> = LpmTrie::new();

#[btf_map]
pub static CLASS_CIDR_V6: LpmTrie<Address, Versioned, 1024> = LpmTrie::new();

#[btf_map]
pub static RULES: HashMap<RuleKey, RuleValue, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static PORTS: LpmTrie<PortKey, PortValue, 1024> = LpmTrie::new();

#[btf_map]
pub static SERVICES: HashMap<ServiceKey, Versioned, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static SERVICE_PORTS: Array<u64, SERVICE_PORT_WORDS> = Array::new();

#[btf_map]
pub static BACKENDS: HashMap<u32, Backends, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static STAMPS: Array<u32, 65_536> = Array::new();

#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, FlowValue, 1024> = LruHashMap::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, 1024> = LruHashMap::new();

#[btf_map]
pub static PAUSES: HashMap<PauseKey, u64, { PAUSES_MAX as usize }> = HashMap::new();

/// Packets by [`palisade_common::Reason`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, REASONS> = PerCpuArray::new();

/// New flows by the rule that admitted them.
#[btf_map]
pub static RULE_HITS: LruHashMap<u32, u64, RULE_HITS_MAX> = LruHashMap::new();

/// Packets that were refused on an uplink, before there was an skb.
#[btf_map]
pub static EARLY: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map]
pub static UPLINK: Array<UplinkConfig, 1> = Array::new();

#[btf_map]
pub static POD_ADDRESSES: HashMap<Address, u32, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The agent maps it into its memory and stores whole words.
#[btf_map]
pub static AWAITED: Array<u32, { AWAITED_SINCE as usize + 1 }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The rule of the last answer that was given on this CPU: an answer has no room for it.
#[btf_map]
pub static LAST_RULE: PerCpuArray<u32, 1> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, 262_144> = RingBuf::new();

/// The packet being judged, the one it quotes, and the one that comes in by an uplink, parsed: too much for the 512 bytes of stack.
#[btf_map]
pub static PACKETS: PerCpuArray<Packet, 3> = PerCpuArray::new();

/// Indices into PACKETS.
pub const PACKET: u32 = 0;
pub const QUOTED: u32 = 1;
pub const UPLINK_PACKET: u32 = 2;

/// Events of this second: (second, sent, lost for ever).
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<[u32; 4], 1> = PerCpuArray::new();

/// Events of this second for one reason at one endpoint in one direction, or for several that share the place: (second, sent).
#[btf_map]
pub static EVENT_GROUPS: PerCpuArray<[u32; 2], { 1 << EVENT_GROUPS_BITS }> = PerCpuArray::new();

pub const EVENT_GROUPS_BITS: u32 = 10;

#[btf_map]
pub static CAPTURES: HashMap<u32, CaptureWanted, CAPTURES_MAX> = HashMap::new();

#[btf_map]
pub static CAPTURED: RingBuf<Captured, 524_288> = RingBuf::new();

/// Where a captured packet is put together: only then is it known how much room it takes.
#[btf_map]
pub static CAPTURE: PerCpuArray<Captured, 1> = PerCpuArray::new();

/// Packets captured in this second: (second, sent).
#[btf_map]
pub static CAPTURE_BUDGET: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();
