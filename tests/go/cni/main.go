// Command palisade-cni-runner calls CNI plugins as a container runtime does, through libcni, which also keeps the results
// in its cache folder.
//
// It reads one request per line on stdin and answers each with one line on stdout, in order, so that a whole node's pods
// cost one start of a program. It acts in the network namespace it is started in.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type request struct {
	// ADD, DEL, CHECK, STATUS or GC.
	Command string `json:"command"`
	// Path of the network's configuration list, or of a folder, of which the first by name is taken, as container runtimes do.
	Conflist string `json:"conflist"`
	// Folders of the plugins.
	Plugins []string `json:"plugins"`
	// Where libcni keeps results (it adds the folder `results`).
	Cache       string         `json:"cache"`
	ContainerID string         `json:"containerId"`
	NetNS       string         `json:"netns"`
	IfName      string         `json:"ifName"`
	Args        [][2]string    `json:"args"`
	Capability  map[string]any `json:"capabilityArgs"`
	// For GC: the containers whose attachment (of ifName) stays.
	Valid []string `json:"valid"`
}

type answer struct {
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

func main() {
	requests := bufio.NewScanner(os.Stdin)
	requests.Buffer(nil, 1<<20)
	answers := json.NewEncoder(os.Stdout)
	for requests.Scan() {
		result, err := call(requests.Bytes())
		answer := answer{Result: result}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			fail(err)
		}
	}
	if err := requests.Err(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "palisade-cni-runner:", err)
	os.Exit(1)
}

func call(line []byte) (any, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, err
	}
	network, err := configuration(r.Conflist)
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir(r.Plugins, r.Cache, nil)
	runtime := &libcni.RuntimeConf{
		ContainerID:    r.ContainerID,
		NetNS:          r.NetNS,
		IfName:         r.IfName,
		Args:           r.Args,
		CapabilityArgs: r.Capability,
	}
	ctx := context.Background()
	switch r.Command {
	case "ADD":
		return cni.AddNetworkList(ctx, network, runtime)
	case "DEL":
		return nil, cni.DelNetworkList(ctx, network, runtime)
	case "CHECK":
		return nil, cni.CheckNetworkList(ctx, network, runtime)
	case "STATUS":
		return nil, cni.GetStatusNetworkList(ctx, network)
	case "GC":
		args := &libcni.GCArgs{}
		for _, container := range r.Valid {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: container, IfName: r.IfName})
		}
		return nil, cni.GCNetworkList(ctx, network, args)
	default:
		return nil, fmt.Errorf("unknown command %q", r.Command)
	}
}

func configuration(path string) (*libcni.NetworkConfigList, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return libcni.ConfListFromFile(path)
	}
	files, err := libcni.ConfFiles(path, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no network's configuration in %s", path)
	}
	sort.Strings(files)
	return libcni.ConfListFromFile(files[0])
}
