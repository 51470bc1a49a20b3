{{- define "palisade.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "palisade.securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
# Kubernetes gives no ambient capabilities to other users; pins on the bpffs and /run/palisade are root's.
runAsUser: 0
# containerd's default profile admits bpf(2) to a container with CAP_BPF or CAP_SYS_ADMIN.
seccompProfile:
  type: RuntimeDefault
capabilities:
  drop: [ALL]
  add:
    - BPF # load programs, make maps
    - NET_ADMIN # attach to interfaces (TCX, clsact), netlink
    - PERFMON # verifier: pointer arithmetic without masking; the kernel's BTF
    - NET_BROADCAST # netlink notices of pods' network namespaces
    {{- if .Values.securityContext.sysAdmin }}
    - SYS_ADMIN # see values.yaml
    {{- end }}
{{- end }}

{{- define "palisade.placement" -}}
priorityClassName: {{ .Values.priorityClassName }}
tolerations:
  {{- toYaml .Values.tolerations | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
