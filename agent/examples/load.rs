use aya::{EbpfLoader, programs::SchedClassifier};
fn main() {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let mut loader = EbpfLoader::new();
    for (n, s) in palisade::kernel::map_sizes(Default::default()) {
        loader.map_max_entries(n, s.min(1024));
    }
    let mut ebpf = loader.load(&bytes).unwrap();
    for name in ["from_pod", "to_pod", "empty"] {
        let p: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        let t = std::time::Instant::now();
        if let Err(e) = p.load() {
            let s = format!("{e:#?} {e}");
            println!("{}", &s[s.len().saturating_sub(6000)..]);
            return;
        }
        println!("{name}: {:?} verified {:?}", t.elapsed(), p.info().unwrap().verified_instruction_count());
    }
}
