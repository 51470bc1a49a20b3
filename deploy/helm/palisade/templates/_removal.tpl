{{- /* What a pod that cleans its node is made of: it is ready once the node is clean, and stays. */ -}}
{{- define "palisade.removal" -}}
initContainers:
  - name: uninstall
    {{- include "palisade.removalContainer" . | nindent 4 }}
    args:
      - uninstall
      - --wait=90s # for the agent's own pod to end
      {{- include "palisade.removalFolders" . | nindent 6 }}
containers:
  - name: clean
    {{- include "palisade.removalContainer" . | nindent 4 }}
    args:
      - uninstall
      - --stay
      {{- include "palisade.removalFolders" . | nindent 6 }}
volumes:
  - name: bpffs
    hostPath: {path: /sys/fs/bpf, type: Directory}
  - name: cni-conf
    hostPath: {path: {{ .Values.cni.confDir }}, type: DirectoryOrCreate}
  - name: cni-bin
    hostPath: {path: {{ .Values.cni.binDir }}, type: DirectoryOrCreate}
  - name: run
    hostPath: {path: /run/palisade, type: DirectoryOrCreate}
  - name: state
    hostPath: {path: /var/lib/palisade, type: DirectoryOrCreate}
{{- end }}

{{- define "palisade.removalContainer" -}}
image: {{ include "palisade.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/palisade]
securityContext:
  {{- include "palisade.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
  - {name: run, mountPath: /run/palisade}
  - {name: state, mountPath: /var/lib/palisade}
  - {name: cni-conf, mountPath: {{ .Values.cni.confDir }}}
  - {name: cni-bin, mountPath: {{ .Values.cni.binDir }}}
{{- end }}

{{- define "palisade.removalFolders" -}}
- --state-dir=/var/lib/palisade
- --cni-conf-dir={{ .Values.cni.confDir }}
- --cni-bin-dir={{ .Values.cni.binDir }}
{{- end }}
