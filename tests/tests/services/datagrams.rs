//! Datagrams that are longer than a frame: only their first fragment says what port they are for, and the node puts them
//! together and takes them apart again on their way to a backend.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use palisade_tests::lab::{Mode, Netns};

use crate::connections::{ALL, SOME, TARGETS, policy};
use crate::world::World;

/// Three fragments.
const LENGTH: usize = 3500;
/// The first one may be lost to a router that tells its path's MTU.
const ATTEMPTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);

#[test]
fn long_datagrams() {
    let world = World::new(Mode::Nftables);
    world.wait_for(&TARGETS);
    expect(&world, &ALL, "no agent");
    let (all, some) = (policy(&world, &ALL), policy(&world, &SOME));
    world.put(&some);
    let agents = world.start_agents(true);
    expect(&world, &SOME, "the policy admits some");
    world.change_policies(&agents, std::slice::from_ref(&some), std::slice::from_ref(&all));
    expect(&world, &ALL, "the policy admits all");
}

/// Exactly these answer.
fn expect(world: &World, answering: &[&str], when: &str) {
    let from = &world.places["a"].netns;
    let ways = TARGETS.iter().flat_map(|target| world.addresses(target).into_iter().map(move |way| (target, way)));
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            ways.map(|(target, way)| (target, way.clone(), scope.spawn(move || ask(from, way.0)))).collect();
        let wrong = threads.into_iter().filter_map(|(target, (to, backends), thread)| {
            let answer = thread.join().expect("asking does not panic");
            let wanted = backends.into_iter().find(|name| answering.contains(&name.as_str()));
            (answer != wanted).then(|| format!("{target} {to}: answered by {answer:?}, expected: {wanted:?}"))
        });
        wrong.collect()
    });
    assert!(wrong.is_empty(), "{when}:\n    {}", wrong.join("\n    "));
}

/// Who sends a whole datagram back.
fn ask(from: &Netns, to: SocketAddr) -> Option<String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = from.run(|| UdpSocket::bind((any, 0))).expect("a socket");
    socket.connect(to).expect("a way");
    socket.set_read_timeout(Some(PAUSE)).expect("it is not zero");
    let sent: Vec<u8> = (0..LENGTH).map(|number| b'a' + u8::try_from(number % 26).expect("a letter")).collect();
    let mut buffer = [0; 2 * LENGTH];
    (0..ATTEMPTS).find_map(|_| {
        // What a router says of its MTU is an error of the next call.
        let _ = socket.send(&sent);
        let length = socket.recv(&mut buffer).ok()?;
        let name = buffer[..length].strip_suffix(&*sent)?.strip_suffix(b"\n")?;
        Some(String::from_utf8_lossy(name).into_owned())
    })
}
