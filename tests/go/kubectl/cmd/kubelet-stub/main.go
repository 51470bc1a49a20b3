// What a kubelet does when the API server asks for a command in a container, and nothing else: it runs one program in the namespaces
// that it was itself started in, whichever pod of its own is named.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

var (
	listen  = flag.String("listen", "", "address and port")
	cert    = flag.String("cert", "", "certificate of this kubelet")
	key     = flag.String("key", "", "its key")
	ca      = flag.String("client-ca", "", "who signs for the API server")
	pod     = flag.String("pod", "", "NAMESPACE/NAME of the pod that there is")
	binary  = flag.String("binary", "", "the program's path in the container")
	program = flag.String("program", "", "what is run for it; further arguments are added to the command's")
)

type container struct{}

// ExecInContainer runs the command until it ends or its reader has gone.
func (container) ExecInContainer(ctx context.Context, _, _, _ string, command []string, _ io.Reader, out, errors io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if len(command) == 0 || command[0] != *binary {
		return fmt.Errorf("exec: %q: no such file or directory", command)
	}
	process := exec.CommandContext(ctx, *program, append(command[1:], flag.Args()...)...)
	process.Stdout, process.Stderr = out, errors
	err := process.Run()
	if exit, is := err.(*exec.ExitError); is {
		return &utilexec.ExitErrorWrapper{ExitError: exit}
	}
	return err
}

// serve answers POST and GET /exec/NAMESPACE/POD/CONTAINER?command=…, as the API server asks.
func serve(w http.ResponseWriter, req *http.Request) {
	path := strings.Split(strings.TrimPrefix(req.URL.Path, "/"), "/")
	if len(path) != 4 || path[0] != "exec" || path[1]+"/"+path[2] != *pod {
		http.NotFound(w, req)
		return
	}
	options, err := remotecommand.NewOptions(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	log.Printf("%s %s as %s", req.Method, req.URL, req.TLS.PeerCertificates[0].Subject)
	remotecommand.ServeExec(w, req, container{}, path[2], "", path[3], req.URL.Query()["command"], options, time.Hour, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func main() {
	flag.Parse()
	signed, err := os.ReadFile(*ca)
	if err != nil {
		log.Fatal(err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(signed) {
		log.Fatalf("no certificate in %s", *ca)
	}
	server := http.Server{
		Addr:    *listen,
		Handler: http.HandlerFunc(serve),
		// Nobody else is answered, as a kubelet does that asks nobody whether it may.
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities},
		// SPDY takes the connection over.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	log.Fatal(server.ListenAndServeTLS(*cert, *key))
}
