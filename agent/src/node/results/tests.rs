use std::fs;
use std::time::Duration;

use super::*;

async fn turn(folder: &mut Folder) -> Turn {
    tokio::time::timeout(Duration::from_secs(5), folder.turn()).await.expect("an event").expect("inotify works")
}

#[tokio::test(flavor = "current_thread")]
async fn files_come_change_and_go() {
    let root = tempfile::tempdir().expect("a folder");
    let results = root.path().join("cni/results");
    let mut folder = Folder::watch(results.clone()).expect("a watch");
    assert!(matches!(folder.read_all().expect("a missing folder is an empty one").as_slice(), [Event::ResultFiles(_)]));

    fs::create_dir_all(&results).expect("a folder");
    assert_eq!(turn(&mut folder).await, Turn::Everything);
    let file = results.join("cbr0-1-eth0");
    fs::write(&file, "{").expect("a file");
    assert_eq!(turn(&mut folder).await, Turn::File(file.clone()));
    let moved = results.join("cbr0-2-eth0");
    fs::rename(&file, &moved).expect("a rename");
    assert_eq!(turn(&mut folder).await, Turn::File(file.clone()));
    assert_eq!(turn(&mut folder).await, Turn::File(moved.clone()));
    assert!(matches!(read(&file), Event::ResultGone(_)));
    assert!(matches!(read(&moved), Event::Result { reading: Reading::NotYet(_), .. }));
    fs::remove_file(&moved).expect("a file");
    assert_eq!(turn(&mut folder).await, Turn::File(moved));

    // The folder goes and comes again, with a file in it.
    fs::remove_dir_all(root.path().join("cni")).expect("a folder");
    assert_eq!(turn(&mut folder).await, Turn::Everything);
    fs::create_dir_all(&results).expect("a folder");
    fs::write(&file, "{}").expect("a file");
    while turn(&mut folder).await != Turn::File(file.clone()) {
        if folder.read_all().expect("a list").len() == 2 {
            break;
        }
    }
    assert_eq!(folder.read_all().expect("a list").len(), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn files_that_are_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let reading = |path: &Path| match read(path) {
        Event::Result { reading: Reading::NotYet(reason), .. } => reason,
        event => panic!("not refused: {event:?}"),
    };
    let large = root.path().join("large");
    fs::write(&large, vec![b' '; RESULT_MAX as usize + 1]).expect("a file");
    assert!(reading(&large).contains("larger"));
    let pipe = root.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    assert!(reading(&pipe).contains("regular"));
    assert!(reading(root.path()).contains("regular"));
}
